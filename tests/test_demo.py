"""The demo: what its functions do, the command as a process in a real browser, and the Space it writes."""

import ast
import html
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import RepoCard
from PIL import Image

from speechclip_plus import SpeechClipPlusModel, SpeechClipPlusProcessor
from speechclip_plus.trainer.spoken_scenes.espeak import Voice, synthesise
from speechclip_plus.trainer.tiny_backbones import tiny_backbone
from speechclip_plus_cli.demo import SCENES, load_app, write_scenes, write_space
from speechclip_plus_cli.main import main

pytest.importorskip("gradio")
app = load_app()

PATIENCE = 300  # seconds: the machine may be busy
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
RATE = 16_000
VISITOR = types.SimpleNamespace(session_hash="a visitor")

SPACE = Path(__file__).parents[1] / "hub_cards" / "space"


def save_model(folder, variant):
    torch.manual_seed(0)
    backbones = tiny_backbone("hubert"), tiny_backbone("clip")
    SpeechClipPlusModel.from_backbones(*backbones, config=f"{variant}-tiny").save_pretrained(folder)
    SpeechClipPlusProcessor.from_backbones(*backbones).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("demo") / "model", "hybrid_plus")


@pytest.fixture(scope="module")
def scenes_folder(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("indexes") / "six scenes", 6)


@pytest.fixture(scope="module")
def query(tmp_path_factory):
    """A spoken description at a rate and with channels that are not the model's."""
    file = tmp_path_factory.mktemp("query") / "query.wav"
    samples = synthesise("there is a big red star above a small blue ring", Voice("en-us")).repeat(2)
    soundfile.write(file, np.stack([samples, samples], axis=1), 2 * RATE)
    return file


@pytest.fixture(scope="module")
def searcher(model_folder):
    return app.Searcher(str(model_folder))


@pytest.fixture(scope="module")
def indexes(searcher, scenes_folder):
    return app.Demo(searcher, [scenes_folder]).indexes


@pytest.fixture
def demo(searcher, indexes):
    """The app with a memory of its own."""
    demo = app.Demo.__new__(app.Demo)
    demo.searcher, demo.indexes, demo.visits, demo.first = searcher, indexes, {}, 0
    return demo


def upload_of(*files, folder):
    """Files as gradio hands them over: each copied to a folder of its own, the browser's name beside it."""
    values = []
    for number, file in enumerate(files):
        place = folder / f"upload-{number}"
        place.mkdir(parents=True)
        values.append({"path": str(shutil.copy(file, place)), "orig_name": Path(file).name})
    return values


def names_in(answer):
    """What an answer lists, the best first, with the similarities."""
    found = re.findall(r'<span class="place">\d+</span>(.*?)</span>.*?<b>(-?[\d.]+)</b>', answer)
    return [name for name, _ in found], [float(score) for _, score in found]


def wait_for(check, seconds=PATIENCE):
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.1)


def ask(demo, kind, read, value, choice="six scenes", visitor=VISITOR):
    return demo.search(kind, choice, visitor, read, value)


# What is searched


def test_the_recording_offered_first_is_one_whose_keywords_are_in_its_label(searcher, indexes, monkeypatch):
    index = indexes["recordings"]["six scenes"]
    ids = [searcher.processor.tokenizer(label, add_special_tokens=False)["input_ids"] for label in index.labels]
    heard = iter([[ids[0][0], -1], [-1, -1], [ids[2][0], ids[2][-1]], AssertionError])
    monkeypatch.setattr(
        searcher, "hear", lambda *_: (None, None, [types.SimpleNamespace(id=token) for token in next(heard)])
    )
    assert searcher.best_understood(index) == 2
    assert [one["index"] for one in index.some(3, first=2)] == [2, 0, 4]
    assert [one["index"] for one in index.some(3, first=5)] == [5, 0, 2]


def test_a_recording_finds_images_in_the_order_of_the_models_own_similarities(demo, query, scenes_folder, tmp_path):
    (value,) = upload_of(query, folder=tmp_path)
    answer = ask(demo, "images", demo.recording, value)
    files = sorted((scenes_folder / "images").iterdir())
    model, processor = demo.searcher.model, demo.searcher.processor
    with torch.no_grad():
        speech = model.get_audio_features(**processor(audio=query)).pooler_output
        images = model.get_image_features(**processor(images=files)).pooler_output
    expected = (speech @ images.T)[0]
    names, scores = names_in(answer)
    assert names == [files[index].stem for index in expected.argsort(descending=True)]
    assert scores == pytest.approx(expected.sort(descending=True).values.tolist(), abs=2e-3)


def test_the_keywords_are_the_models_with_their_times(demo, query, tmp_path):
    (value,) = upload_of(query, folder=tmp_path)
    answer = ask(demo, "images", demo.recording, value)
    processor = demo.searcher.processor
    keywords = demo.searcher.model.extract_keywords(**processor(audio=query), tokenizer=processor)[0]
    shown = re.findall(r'data-start="([\d.]+)" data-end="([\d.]+)" title="(.*?), ', answer)
    assert len(keywords) > 1
    assert [html.unescape(text) for _, _, text in shown] == [word.text or f"#{word.id}" for word in keywords]
    assert [float(start) for start, _, _ in shown] == pytest.approx([k.start for k in keywords], abs=2e-3)
    assert [float(end) for _, end, _ in shown] == pytest.approx([k.end for k in keywords], abs=2e-3)


@pytest.mark.parametrize("variant, told", [("hybrid", "does not tell when"), ("parallel", "without keywords")])
def test_models_without_times_or_without_keywords_say_so(variant, told, query, tmp_path):
    searcher = app.Searcher(str(save_model(tmp_path / variant, variant)))
    card = searcher.listen(*app.read_recording(query)).shown
    assert told in card and "<path" in card and "data-start" not in card


def test_words_and_images_find_recordings_in_the_order_of_the_models_own_similarities(demo, scenes_folder, tmp_path):
    files = sorted((scenes_folder / "recordings").iterdir())
    file = sorted((scenes_folder / "images").iterdir())[2]
    model, processor = demo.searcher.model, demo.searcher.processor
    with torch.no_grad():
        speech = model.get_audio_features(**processor(audio=files)).pooler_output
        text = model.get_text_features(**processor(text="a red star")).pooler_output
        image = model.get_image_features(**processor(images=file)).pooler_output
    (value,) = upload_of(file, folder=tmp_path)
    for query, answer in (
        (text, ask(demo, "recordings", demo.text, " a red  star ")),
        (image, ask(demo, "recordings", demo.image, value)),
        (image, ask(demo, "recordings", demo.offered_image, 2)),
    ):
        order = (query @ speech.T)[0].argsort(descending=True)[: app.NUM_FOUND["recordings"]]
        assert names_in(answer)[0] == [files[index].stem for index in order]


def test_own_images_are_put_in_order_for_what_was_said_before_and_can_be_left_again(demo, query, tmp_path):
    for name in ("red", "blue"):
        Image.new("RGB", (90, 60), name).save(tmp_path / f"all_{name}.png")
    (value,) = upload_of(query, folder=tmp_path / "speech")
    first = ask(demo, "images", demo.recording, value)
    own = upload_of(tmp_path / "all_red.png", tmp_path / "all_blue.png", folder=tmp_path / "own")
    update, answer = demo.upload("images", own, "six scenes", VISITOR)
    assert update["value"] == "yours" and ("Yours (2)", "yours") in update["choices"]
    assert sorted(names_in(answer)[0]) == ["all blue", "all red"]
    assert ask(demo, "images", demo.last, None) == first


def test_names_of_files_are_text_and_not_markup(demo, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    own = upload_of(tmp_path / "x.png", folder=tmp_path / "own")
    own[0]["orig_name"] = "<script>alert(1)</script>.png"
    ask(demo, "images", demo.offered_recording, 0)
    _, answer = demo.upload("images", own, "six scenes", VISITOR)
    asked = ask(demo, "recordings", demo.text, "<b>bold</b>")
    assert "<script>" not in answer and "<b>bold" not in asked and "&lt;b&gt;bold" in asked


# What is not kept


def test_an_upload_is_deleted_soon_after_it_was_read_even_if_it_cannot_be(demo, query, tmp_path, monkeypatch):
    monkeypatch.setattr(app, "DELETE_AFTER", 0.01)
    (tmp_path / "broken.wav").write_text("no sound")
    for number, file in enumerate((query, tmp_path / "broken.wav")):
        folder = tmp_path / str(number)
        (value,) = upload_of(file, folder=folder)
        ask(demo, "images", demo.recording, value)
        wait_for(lambda folder=folder: not any(folder.iterdir()))


def test_a_closed_page_is_forgotten(demo, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    demo.upload("images", upload_of(tmp_path / "x.png", folder=tmp_path / "own"), "six scenes", VISITOR)
    assert "no longer here" not in ask(demo, "images", demo.last, None, "yours")
    demo.forget(VISITOR)
    assert not demo.visits
    assert "no longer here" in ask(demo, "images", demo.last, None, "yours")


def test_only_so_many_pages_are_remembered_and_the_quietest_goes_first(demo, monkeypatch):
    monkeypatch.setattr(app, "MAX_VISITS", 2)
    for name in ("a", "b", "a", "c"):
        ask(demo, "images", demo.last, None, visitor=types.SimpleNamespace(session_hash=name))
    assert list(demo.visits) == ["a", "c"]


def test_without_a_session_nothing_is_taken_and_nothing_is_remembered(demo, query, tmp_path):
    stranger = types.SimpleNamespace(session_hash=None)
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    own = upload_of(tmp_path / "x.png", folder=tmp_path / "own")
    update, answer = demo.upload("images", own, "six scenes", stranger)
    assert "needs a session" in answer and "value" not in update
    (value,) = upload_of(query, folder=tmp_path / "speech")
    assert "needs a session" in ask(demo, "images", demo.recording, value, visitor=stranger)
    assert not demo.visits


def test_one_page_does_not_see_what_another_uploaded(demo, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    demo.upload("images", upload_of(tmp_path / "x.png", folder=tmp_path / "own"), "six scenes", VISITOR)
    other = types.SimpleNamespace(session_hash="another visitor")
    assert "no longer here" in ask(demo, "images", demo.last, None, "yours", visitor=other)


# What is refused


@pytest.mark.parametrize(
    "seconds, channels, told",
    [(31, 1, "longer than 30 seconds"), (0.01, 1, "shorter than 0.1 seconds"), (1, 9, "9 channels")],
)
def test_recordings_out_of_bounds_are_refused_with_the_bound(tmp_path, seconds, channels, told):
    soundfile.write(tmp_path / "a.wav", np.zeros((int(seconds * 8_000), channels)), 8_000)
    with pytest.raises(ValueError, match=told):
        app.read_recording(tmp_path / "a.wav")


def test_a_recording_of_exactly_the_longest_length_is_taken(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(30 * 8_000), 8_000)
    samples, rate = app.read_recording(tmp_path / "a.wav")
    assert samples.shape == (30 * 8_000,) and rate == 8_000


def test_what_is_no_recording_or_no_image_or_too_large_is_refused(searcher, tmp_path, monkeypatch):
    (tmp_path / "a.wav").write_text("nothing")
    with pytest.raises(ValueError, match="WAV, FLAC, OGG and MP3"):
        app.read_recording(tmp_path / "a.wav")
    with pytest.raises(ValueError, match="The image: cannot be read as an image; expected png, jpeg"):
        searcher.read_image(tmp_path / "a.wav")
    Image.new("L", (1200, 1000)).save(tmp_path / "a.png")
    monkeypatch.setattr(app, "MAX_MEGAPIXELS", 1)
    with pytest.raises(ValueError, match="more than 1 million pixels"):
        searcher.read_image(tmp_path / "a.png")


def test_images_are_read_as_the_processor_reads_them(searcher, tmp_path):
    grey = np.linspace(0, 65_535, 64 * 48, dtype=np.uint16).reshape(48, 64)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    read = searcher.read_image(tmp_path / "grey.png")
    expected = searcher.processor(images=tmp_path / "grey.png")["pixel_values"]
    torch.testing.assert_close(searcher.processor(images=read)["pixel_values"], expected)
    assert read.mode == "RGB" and read.getpixel((63, 47)) == (255, 255, 255)


def test_too_many_images_too_much_text_and_no_text_are_refused_and_change_nothing(demo, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    many = upload_of(*[tmp_path / "x.png"] * 201, folder=tmp_path / "own")
    update, answer = demo.upload("images", many, "six scenes", VISITOR)
    assert "201 images are too many: at most 200" in answer and "value" not in update
    assert "301 characters" in ask(demo, "recordings", demo.text, "x" * 301)
    assert "no words" in ask(demo, "recordings", demo.text, "  ")
    assert not demo.visit(VISITOR).uploads and not demo.visit(VISITOR).queries


# The command


def failing(capsys, *arguments):
    """Run the command, which has to fail; return its one line."""
    assert main(["demo", *map(str, arguments)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_without_a_model_it_says_how_to_get_one(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "speechclip-plus quickstart" in failing(capsys)
    assert "no config.json" in failing(capsys, "--model", tmp_path)


def test_folders_that_are_none_or_hold_nothing_to_search_are_named(capsys, tmp_path, model_folder):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "x.png")
    assert f"{tmp_path / 'none'} is no folder" in failing(
        capsys, "--model", model_folder, "--index", tmp_path / "none"
    )
    told = failing(capsys, "--model", model_folder, "--index", tmp_path / "images")
    assert f"no recordings to search in {tmp_path / 'images'}" in told
    (tmp_path / "images" / "broken.png").write_text("no image")
    assert "broken: cannot be read" in failing(capsys, "--model", model_folder, "--index", tmp_path / "images")


def test_without_gradio_it_says_what_to_install(capsys, model_folder, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else find(name))
    assert 'pip install "speechclip-plus[demo]"' in failing(capsys, "--model", model_folder)


# The Space


def test_the_app_runs_without_this_package_on_what_it_requires():
    # The Hub installs the gradio that the card names; markupsafe is part of jinja2.
    names = {"PIL": "pillow", "markupsafe": "jinja2", "gradio": None, "waveform": None}
    required = {re.split(r"[<>=]", line)[0] for line in (SPACE / "requirements.txt").read_text().split()}
    code = "\n".join((SPACE / name).read_text(encoding="utf-8") for name in ("app.py", "waveform.py"))
    for node in ast.walk(ast.parse(code)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
        for module in {name.split(".")[0] for name in modules} - sys.stdlib_module_names:
            assert names.get(module, module) in required | {None}, f"the app imports {module}"


def test_a_space_names_its_model_and_brings_what_it_searches(tmp_path, scenes_folder):
    assert main(["demo", "--write-space", str(tmp_path / "space"), "--model", "somebody/model"]) == 0
    card = RepoCard.load(tmp_path / "space" / "README.md")
    assert card.data["models"] == ["somebody/model"] and card.data["sdk"] == "gradio"
    assert (tmp_path / "space" / card.data["app_file"]).is_file()
    assert len(card.data["short_description"]) <= 60  # the Hub's limit
    assert '\nMODEL_ID = "somebody/model"' in (tmp_path / "space" / "app.py").read_text(encoding="utf-8")
    assert len(list((tmp_path / "space" / "indexes" / SCENES).rglob("*.png"))) == 24
    write_space(tmp_path / "own", "somebody/model", [scenes_folder])
    assert len(list((tmp_path / "own" / "indexes" / "six scenes").rglob("*.flac"))) == 6


def test_a_space_needs_a_repository_and_a_folder_of_its_own(capsys, tmp_path, model_folder):
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "mine.txt").write_text("mine")
    for model in (str(model_folder), "model", ""):
        assert "USER/NAME" in failing(capsys, "--write-space", tmp_path / "new", "--model", model)
    assert "--force" in failing(capsys, "--write-space", tmp_path / "space", "--model", "somebody/model")
    assert [path.name for path in tmp_path.iterdir()] == ["space"] and (tmp_path / "space" / "mine.txt").exists()


def test_force_replaces_an_earlier_space_and_nothing_else(
    scenes_folder, tmp_path, capsys, assert_replaces_only_its_own_output
):
    own = shutil.copytree(scenes_folder, tmp_path / "indexes" / "own")
    command = ["demo", "--model", "somebody/model", "--force", "--write-space"]
    assert_replaces_only_its_own_output(lambda folder: main([*command, str(folder), "--index", str(own)]), [own])
    added = tmp_path / "output" / "indexes" / "own" / "images" / "added.png"
    shutil.copy(next(own.rglob("*.png")), added)
    assert str(added) in failing(capsys, *command[1:], tmp_path / "output", "--index", own)
    assert main([*command, str(tmp_path / "drawn")]) == 0 and main([*command, str(tmp_path / "drawn")]) == 0


def test_a_space_without_a_model_says_which_variable_is_missing(monkeypatch):
    monkeypatch.delenv("MODEL_ID", raising=False)
    with pytest.raises(SystemExit, match="MODEL_ID"):
        app.main()


# In a browser


@pytest.fixture(scope="module")
def server(model_folder, scenes_folder, tmp_path_factory):
    """The command in a process of its own: its address, and the folders in which it may leave files."""
    home = tmp_path_factory.mktemp("server")
    places = {name: home / name for name in ("temporary", "current")}
    for place in places.values():
        place.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = home / "log"
    arguments = ["--model", model_folder, "--index", scenes_folder, "--port", str(port), "--no-browser"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(places["temporary"]),
        "MPLCONFIGDIR": str(tmp_path_factory.mktemp("matplotlib")),  # its list of fonts
        "HOME": str(places["current"]),
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "speechclip_plus_cli", "demo", *map(str, arguments)],
            cwd=places["current"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for(lambda: "Serving" in log.read_text() or process.poll() is not None, 2 * PATIENCE)
            assert process.poll() is None, log.read_text()
            yield f"http://127.0.0.1:{port}/", places
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0, log.read_text()
            assert "Ended" in log.read_text() and "Traceback" not in log.read_text(), log.read_text()
            left = [path for place in places.values() for path in place.rglob("*") if path.is_file()]
            assert not left
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def browser(server, query):
    """A headless Chromium whose microphone hears the query."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update"]
    flags += ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    flags += [f"--use-file-for-fake-audio-capture={query}"]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, server):
    """Open the page in a window of some size; no request may leave the machine."""
    address, _ = server
    opened, elsewhere = [], []

    def open_page(width=1280, height=900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        opened.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE * 1000)
        page.on("request", lambda request: elsewhere.append(request.url))
        page.goto(address)
        page.wait_for_selector("#recorder button")
        return page

    yield open_page
    for context in opened:
        context.close()
    assert not [url for url in elsewhere if not url.startswith((address, "data:", "blob:"))]


def upload_recording(page, file):
    page.locator("#recorder .source-selection button").first.click()
    page.set_input_files("#recorder input[type=file]", file)


def uploads_left(places):
    return [path for path in places["temporary"].rglob("*") if path.is_file() and "speechclip-plus-demo" in str(path)]


def test_an_uploaded_recording_shows_ranked_images_and_keywords_and_leaves_no_file(open_page, server, query):
    page = open_page()
    upload_recording(page, query)
    page.wait_for_selector("#images-found ol.found")
    scores = [float(text) for text in page.locator("#images-found ol.found .score b").all_inner_texts()]
    assert len(scores) == 6 and scores == sorted(scores, reverse=True)
    assert page.locator("#images-found ol.found img").evaluate_all("all => all.every(i => i.naturalWidth > 0)")
    assert page.locator("#images-found .chip").count() > 1
    wait_for(lambda: not uploads_left(server[1]))
    # A keyword plays its own moment and stops there.
    chip = page.locator("#images-found .chip").nth(1)
    end = float(chip.get_attribute("data-end"))
    chip.click()
    page.wait_for_function(f"document.querySelector('.speech audio').currentTime >= {end}")
    page.wait_for_function("document.querySelector('.speech audio').paused")
    assert page.evaluate("document.querySelector('.speech audio').currentTime") < end + 0.5


def test_what_the_microphone_hears_is_answered(open_page):
    page = open_page(permissions=["microphone"])
    page.locator("#recorder .record-button").click()
    page.wait_for_timeout(1500)
    page.locator("#recorder button:visible", has_text="Stop").click()
    page.wait_for_selector("#images-found ol.found")
    assert page.locator("#images-found .speech audio").evaluate("audio => audio.duration > 0.5")


def test_a_recording_that_is_too_long_or_too_large_is_refused_in_words(open_page, server, tmp_path):
    soundfile.write(tmp_path / "long.flac", np.zeros(40 * RATE), RATE)
    soundfile.write(tmp_path / "large.wav", np.zeros((11_000_000, 1)), 48_000)  # 22 MB
    page = open_page()
    upload_recording(page, tmp_path / "long.flac")
    page.wait_for_selector("#images-found [role=alert]")
    assert "longer than 30 seconds" in page.inner_text("#images-found")
    page.set_input_files("#recorder input[type=file]", tmp_path / "large.wav")
    page.get_by_text("maximum allowed size of 20").wait_for()
    wait_for(lambda: not uploads_left(server[1]))


def test_text_and_images_find_recordings(open_page):
    page = open_page()
    page.get_by_role("tab", name="Find recordings").click()
    page.get_by_role("textbox", name="In words").fill("a red star")
    page.get_by_role("textbox", name="In words").press("Enter")
    page.wait_for_selector("#recordings-found ol.found")
    assert "“a red star”" in page.inner_text("#recordings-found")
    assert page.locator("#recordings-found ol.found audio").count() == 5
    page.locator(".offered.images button").first.click()
    page.wait_for_selector("#recordings-found .asked img")
    assert "a red star”" not in page.inner_text("#recordings-found")


def test_own_images_are_searched_and_leave_no_file(open_page, server, scenes_folder):
    page = open_page()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Search your own images").click()
    chooser.value.set_files(sorted((scenes_folder / "images").iterdir())[:2])
    page.get_by_text("Yours (2)").wait_for()
    page.locator(".offered.recordings button").first.click()
    page.wait_for_selector("#images-found ol.found")
    assert page.locator("#images-found ol.found li").count() == 2
    wait_for(lambda: not uploads_left(server[1]))


def test_a_phone_shows_everything_without_scrolling_sideways(open_page):
    page = open_page(390, 844, has_touch=True, is_mobile=True)
    widths = "[document.documentElement.scrollWidth, window.innerWidth]"
    assert page.evaluate(widths) == [390, 390]
    page.locator(".offered.recordings button").first.click()
    page.wait_for_selector("#images-found ol.found")
    assert page.evaluate(widths) == [390, 390]
    page.wait_for_function("document.querySelector('#images-found').getBoundingClientRect().top < innerHeight / 2")
    tab = page.get_by_role("tab", name="Find recordings")
    assert tab.is_visible()  # and not in a menu
    tab.click()
    page.locator(".offered.images button").first.click()
    page.wait_for_selector("#recordings-found ol.found")
    assert page.evaluate(widths) == [390, 390]


def test_the_keyboard_alone_reaches_and_works_the_main_controls(open_page):
    page = open_page()
    reached = []
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(document.activeElement.innerText || document.activeElement.type || '').trim()"))
    everything = " ".join(reached)
    for control in ("Privacy", "Find images", "Record", "radio", "Search your own images"):
        assert control in everything
    page.locator(".offered.recordings button").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#images-found ol.found")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_stand_out_from_what_is_behind_them(open_page, scheme):
    page = open_page(color_scheme=scheme)
    page.locator(".offered.recordings button").first.click()
    page.wait_for_selector("#images-found ol.found")
    ratios = page.evaluate(CONTRAST, [".lead", ".hint", ".note", ".chip", ".name", ".place", ".score", "summary"])
    assert min(ratios.values()) >= 4.5, ratios  # WCAG 2, level AA
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")


CONTRAST = """selectors => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = colour.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = rgb(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  return Object.fromEntries(selectors.map((selector) => {
    const element = [...document.querySelectorAll(selector)].find((one) => one.checkVisibility());
    const letters = light(rgb(getComputedStyle(element).color).slice(0, 3));
    const [high, low] = [letters, light(behind(element))].sort((a, b) => b - a);
    return [selector, (high + 0.05) / (low + 0.05)];
  }));
}"""
