"""`speechclip-plus index`: what it embeds, that a stopped build resumes, and what a search prints."""

import csv
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from speechclip_plus import (
    EmbeddingIndex,
    SpeechClipPlusModel,
    SpeechClipPlusProcessor,
    build_index,
    load_speech_image_dataset,
)
from speechclip_plus.modeling_speechclip_plus import embedding
from speechclip_plus.modeling_speechclip_plus.audio_utils import load_audio
from speechclip_plus.trainer import index_building
from speechclip_plus.trainer.tiny_backbones import tiny_backbone
from speechclip_plus_cli import main as cli

SECONDS = [0.9, 1.3, 0.5, 1.1, 0.8]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    backbones = (tiny_backbone("hubert"), tiny_backbone("clip"))
    SpeechClipPlusModel.from_backbones(*backbones, config="hybrid_plus-tiny").save_pretrained(folder)
    SpeechClipPlusProcessor.from_backbones(*backbones).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(model_folder):
    """The model and its processor."""
    return (
        SpeechClipPlusModel.from_pretrained(model_folder).eval(),
        SpeechClipPlusProcessor.from_pretrained(model_folder),
    )


def write_images(folder, count, seed=0):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(rng.integers(0, 255, (20 + number % 3, 24, 3), dtype=np.uint8)).save(folder / f"p{number}.png")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, 5)
    write_images(folder / "more", 4, seed=1)
    return folder


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    for number, seconds in enumerate(SECONDS):
        soundfile.write(folder / f"r{number}.wav", rng.normal(0, 0.1, int(seconds * 16_000)), 16_000)
    return folder


@pytest.fixture(scope="module")
def pairs(images, recordings, tmp_path_factory):
    """A data set of five recordings of three images, with captions, in two splits."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = [("p0", "r0", "one", "train"), ("p0", "r1", "two", "train"), ("p1", "r2", "", "train")]
    rows += [("p2", "r3", "four", "test"), ("p2", "r4", "five", "test")]
    with (folder / "metadata.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "audio", "text", "split"])
        for image, recording, text, split in rows:
            writer.writerow([images / f"{image}.png", recordings / f"{recording}.wav", text, split])
    return folder


@pytest.fixture(scope="module")
def image_index(images, model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("indices") / "images"
    assert build(images, folder, "--model", model_folder) == 0
    return folder


@pytest.fixture(scope="module")
def recording_index(pairs, loaded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("indices") / "recordings"
    build_index(pairs, folder, *loaded, kind="audio")
    return folder


def build(*arguments):
    return cli.main(["index", "build", *map(str, arguments)])


def search(*arguments):
    return cli.main(["index", "search", *map(str, arguments)])


def image_embeds(loaded, files):
    model, processor = loaded
    with torch.no_grad():
        return model.get_image_features(processor(images=[str(file) for file in files])["pixel_values"]).pooler_output


def speech_embeds(loaded, files, branch=None):
    model, processor = loaded
    with torch.no_grad():
        inputs = processor(audio=[load_audio(file) for file in files], sampling_rate=16_000)
        return model.get_audio_features(**inputs, branch=branch).pooler_output


def content(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_a_folder_is_embedded_with_the_folders_in_it(image_index, images, loaded):
    index = EmbeddingIndex.load(image_index)
    names = [*(f"more/p{number}.png" for number in range(4)), *(f"p{number}.png" for number in range(5))]
    assert [item["id"] for item in index] == names
    assert [item["path"] for item in index] == [str(images / name) for name in names]
    assert index.kind == "images" and index.branch is None
    torch.testing.assert_close(index.embeddings, image_embeds(loaded, [images / n for n in names]))
    index.check_model(loaded[0])


@pytest.mark.parametrize("branch", ["parallel", "cascaded"])
def test_recordings_are_embedded_by_a_branch_and_in_their_order(recordings, loaded, tmp_path, branch):
    index = build_index(recordings, tmp_path / "index", *loaded, branch=branch, batch_size=2)
    files = sorted(recordings.iterdir())
    assert (index.kind, index.branch) == ("audio", branch)
    assert [item["seconds"] for item in index] == SECONDS
    torch.testing.assert_close(index.embeddings, speech_embeds(loaded, files, branch))


def test_of_a_data_set_each_picture_is_there_once_with_its_first_caption(pairs, images, loaded, tmp_path):
    index = build_index(pairs, tmp_path / "index", *loaded)
    assert [item["id"] for item in index] == ["train/0", "train/1", "test/0"]
    assert [Path(item["path"]).name for item in index] == ["p0.png", "p1.png", "p2.png"]
    assert [item.get("text") for item in index] == ["one", None, "four"]
    expected = image_embeds(loaded, [images / f"p{number}.png" for number in range(3)])
    torch.testing.assert_close(index.embeddings, expected)


def test_of_a_data_set_every_recording_is_there(recording_index, recordings, loaded):
    index = EmbeddingIndex.load(recording_index)
    assert [item.get("text") for item in index] == ["one", "two", None, "four", "five"]
    assert [item["seconds"] for item in index] == SECONDS
    torch.testing.assert_close(index.embeddings, speech_embeds(loaded, sorted(recordings.iterdir())))


def test_a_split_may_be_chosen(pairs, loaded, tmp_path):
    index = build_index(pairs, tmp_path / "index", *loaded, split="test")
    assert [item["id"] for item in index] == ["0"]
    with pytest.raises(ValueError, match="no rows of the split 'dev': it has test, train"):
        build_index(pairs, tmp_path / "other", *loaded, split=["test", "dev"])


def test_a_parquet_of_pictures_alone_keeps_their_bytes(images, loaded, tmp_path):
    files = [images / f"p{number}.png" for number in range(3)]
    rows = {"image": [{"bytes": file.read_bytes(), "path": file.name} for file in files], "text": ["a", "b", "c"]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "some.parquet")
    options = {"columns": {"image": "image"}, "cache_dir": str(tmp_path / "cache")}
    index = build_index(tmp_path / "some.parquet", tmp_path / "index", *loaded, batch_size=2, **options)
    (tmp_path / "some.parquet").unlink()
    assert [index.source(row)["bytes"] for row in range(3)] == [file.read_bytes() for file in files]
    assert [item["text"] for item in index] == ["a", "b", "c"]
    assert "path" not in index[0]
    torch.testing.assert_close(index.embeddings, image_embeds(loaded, files))


def test_a_parquet_of_recordings_alone_keeps_their_bytes(recordings, loaded, tmp_path):
    files = sorted(recordings.iterdir())
    rows = {"audio": [{"bytes": file.read_bytes(), "path": file.name} for file in files]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "test.parquet")
    options = {"kind": "audio", "cache_dir": str(tmp_path / "cache")}
    index = build_index(tmp_path / "test.parquet", tmp_path / "index", *loaded, **options)
    assert [item["id"] for item in index] == [f"test-{row}" for row in range(5)]
    assert index.source(4) == {"path": None, "bytes": files[4].read_bytes()}
    torch.testing.assert_close(index.embeddings, speech_embeds(loaded, files))


def test_all_parquet_files_of_a_folder_are_taken_if_none_is_named_after_a_split(images, loaded, tmp_path):
    for number, name in enumerate(("some", "first", "more")):
        rows = {"image": [str(images / f"p{number}.png")]}
        (tmp_path / "gallery").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "gallery" / f"{name}.parquet")
    index = build_index(tmp_path / "gallery", tmp_path / "index", *loaded, cache_dir=str(tmp_path / "cache"))
    assert [Path(item["path"]).name for item in index] == ["p1.png", "p2.png", "p0.png"]  # first, more, some


def test_a_saved_data_set_is_taken_whole(images, loaded, tmp_path):
    parts = {name: datasets.Dataset.from_dict({"image": [str(images / f"{name}.png")]}) for name in ("p0", "p3")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "gallery")
    index = build_index(tmp_path / "gallery", tmp_path / "index", *loaded)
    assert [Path(item["path"]).name for item in index] == ["p0.png", "p3.png"]


def test_a_killed_build_goes_on_and_ends_as_if_it_had_not_been_killed(model_folder, loaded, tmp_path, capsys):
    images = write_images(tmp_path / "images", 300)
    command = ["index", "build", str(images), str(tmp_path / "killed")]
    command += ["--model", str(model_folder), "--shard-size", "4"]
    process = subprocess.Popen([sys.executable, "-m", "speechclip_plus_cli", *command], stderr=subprocess.PIPE)
    while process.poll() is None and len(list(tmp_path.glob("killed/shard-*.safetensors"))) < 5:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL, process.stderr.read()
    done = 4 * len(list(tmp_path.glob("killed/shard-*.safetensors")))
    assert 20 <= done < 300
    with pytest.raises(ValueError, match="is unfinished: give the command that began it again"):
        EmbeddingIndex.load(tmp_path / "killed")
    assert cli.main(command) == 0
    assert f"going on after {done} of 300" in capsys.readouterr().out
    build_index(images, tmp_path / "whole", *loaded, shard_size=4)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "killed", "whole"]


class Stopped(Exception):
    pass


def stop_after(count):
    def progress(done, total):
        if done >= count:
            raise Stopped

    return progress


def test_nothing_is_embedded_twice(images, loaded, tmp_path, monkeypatch):
    read = []
    original = embedding.load_image
    monkeypatch.setattr(embedding, "load_image", lambda item, name: read.append(name) or original(item, name))
    for count in (2, 4):
        with pytest.raises(Stopped):
            build_index(images, tmp_path / "index", *loaded, shard_size=2, progress=stop_after(count))
    index = build_index(images, tmp_path / "index", *loaded, shard_size=2)
    assert len(read) == len(set(read)) + 4  # of the two shards that were stopped before they were written
    assert set(read) == {f"image {item['id']}" for item in index}


def test_what_was_begun_otherwise_is_an_error_unless_forced(images, recordings, loaded, tmp_path):
    folder = tmp_path / "index"
    with pytest.raises(Stopped):
        build_index(images, folder, *loaded, shard_size=2, progress=stop_after(2))
    with pytest.raises(ValueError, match="begun in .*index with another kind and another branch and another"):
        build_index(recordings, folder, *loaded, shard_size=2)
    other = write_images(tmp_path / "images", 3)
    with pytest.raises(ValueError, match="with another source and another shards: give the command that began it"):
        build_index(other, folder, *loaded, shard_size=2)
    assert len(build_index(other, folder, *loaded, force=True)) == 3
    with pytest.raises(ValueError, match=r"index exists; name another folder, or replace it with force=True"):
        build_index(images, folder, *loaded)
    assert len(build_index(images, folder, *loaded, force=True)) == 9
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"mine exists; name another folder"):
        build_index(images, tmp_path / "mine", *loaded)
    assert (tmp_path / "mine" / "notes.txt").exists()


def test_force_replaces_an_earlier_index_and_nothing_else(model_folder, tmp_path, assert_replaces_only_its_own_output):
    images = write_images(tmp_path / "images" / "own", 3)
    model = shutil.copytree(model_folder, tmp_path / "models" / "model")
    assert_replaces_only_its_own_output(
        lambda folder: build(images, folder, "--model", model, "--force"), [images, model]
    )


def test_a_broken_file_stops_the_build_or_is_left_out_and_listed(loaded, model_folder, tmp_path, capsys):
    images = write_images(tmp_path / "images", 4)
    (images / "p2.png").write_bytes(b"no image")
    command = (images, tmp_path / "index", "--model", model_folder, "--shard-size", 1)
    assert build(*command) == 1
    assert "image p2.png" in capsys.readouterr().err
    assert build(*command, "--on-error", "skip") == 0
    out = capsys.readouterr().out
    assert "going on after 2 of 4" in out and "3 images" in out and "left out: image p2.png" in out
    index = EmbeddingIndex.load(tmp_path / "index")
    assert [item["id"] for item in index] == ["p0.png", "p1.png", "p3.png"]
    assert len(index.facts["skipped"]) == 1


def test_an_index_of_nothing_is_an_error_and_leaves_nothing(loaded, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="None of the 1 items can be used: image broken.png"):
        build_index(tmp_path / "images", tmp_path / "index", *loaded, on_error="skip")
    assert not (tmp_path / "index").exists()


def test_a_data_sets_missing_file_is_left_out_and_listed(pairs, loaded, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "metadata.csv").write_text((pairs / "metadata.csv").read_text().replace("r2.wav", "gone.wav"))
    with pytest.raises(FileNotFoundError, match="gone.wav"):
        build_index(broken, tmp_path / "index", *loaded, kind="audio")
    index = build_index(broken, tmp_path / "index", *loaded, kind="audio", on_error="skip")
    assert len(index) == 4 and "gone.wav" in index.facts["skipped"][0]


def test_hidden_files_are_left_out_and_linked_folders_followed(loaded, tmp_path, monkeypatch):
    images = write_images(tmp_path / "home" / "images", 1)
    for name in ("__MACOSX", ".thumbnails"):
        write_images(images / name, 1)
    (images / "._p0.png").write_bytes(b"no image")
    (images / "linked").symlink_to(write_images(tmp_path / "elsewhere", 2))
    (tmp_path / "elsewhere" / "loop").symlink_to(images)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    index = build_index("~/images", "~/index", *loaded)
    assert [item["id"] for item in index] == ["linked/p0.png", "linked/p1.png", "p0.png"]


def test_a_name_that_is_not_utf8_is_an_error_or_left_out(loaded, tmp_path):
    images = write_images(tmp_path / "images", 2)
    os.rename(images / "p0.png", os.fsencode(images / "p") + b"\xe9.png")
    with pytest.raises(ValueError, match=r"xe9.png.*the name of this file is not UTF-8"):
        build_index(images, tmp_path / "index", *loaded)
    index = build_index(images, tmp_path / "index", *loaded, on_error="skip")
    assert [item["id"] for item in index] == ["p1.png"] and len(index.facts["skipped"]) == 1


def test_an_index_never_replaces_what_it_is_of(loaded, tmp_path):
    images = write_images(tmp_path / "images", 2)
    with pytest.raises(ValueError, match="images is or holds .*images, which is in use; name another folder"):
        build_index(images, images, *loaded, force=True)
    assert len(list(images.iterdir())) == 2


@pytest.mark.parametrize(("suffix", "kind"), [(".csv", "images"), (".jsonl", "audio")])
def test_a_folder_of_datasets_is_taken_with_its_texts(images, recordings, loaded, tmp_path, suffix, kind):
    file = (images / "p0.png") if kind == "images" else (recordings / "r0.wav")
    part = tmp_path / "data" / "train"
    part.mkdir(parents=True)
    for name in (file.name, f"other{file.suffix}"):
        (part / name).write_bytes(file.read_bytes())
    (part / ("r.wav" if kind == "images" else "p.png")).write_bytes(b"no part of it")
    row = {"file_name": file.name, "text": "a dog, and a cat"}
    lines = json.dumps(row) if suffix == ".jsonl" else f'file_name,text\n{file.name},"{row["text"]}"\n'
    (part / f"metadata{suffix}").write_text(lines)
    index = build_index(tmp_path / "data", tmp_path / "index", *loaded)
    assert index.kind == kind and [item["text"] for item in index] == [row["text"]]
    assert index[0]["id"] == f"train/{file.name}"


def test_a_row_of_a_table_with_too_many_fields_is_an_error(images, loaded, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "metadata.csv").write_text("file_name,text\np0.png,a dog, and a cat\n")
    with pytest.raises(ValueError, match=r"metadata.csv, row 1 .* 3 fields, but the header has 2"):
        build_index(tmp_path / "data", tmp_path / "index", *loaded)


def test_an_image_with_damaged_exif_is_embedded_upright(loaded, tmp_path):
    (tmp_path / "images").mkdir()
    lying = Image.fromarray(np.arange(40 * 60 * 3, dtype=np.uint32).astype(np.uint8).reshape(40, 60, 3))
    damaged = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0) + struct.pack("<HHI4s", 0x100, 2, 4, b"abc")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + damaged + b"\0" * 4
    lying.save(tmp_path / "images" / "photo.jpg", exif=exif)
    index = build_index(tmp_path / "images", tmp_path / "index", *loaded)
    Image.open(tmp_path / "images" / "photo.jpg").rotate(270, expand=True).save(tmp_path / "upright.png")
    expected = image_embeds(loaded, [tmp_path / "upright.png"])
    assert (index.embeddings @ expected.T).item() > 0.999


def test_a_recording_too_long_for_one_embedding_is_an_error(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(index_building, "MAX_SECONDS", 1)
    (tmp_path / "gallery").mkdir()
    soundfile.write(tmp_path / "gallery" / "long.wav", np.zeros(40_000), 16_000)
    with pytest.raises(ValueError, match=r"audio long.wav is 2 s long, more than 1 s: cut it into utterances"):
        build_index(tmp_path / "gallery", tmp_path / "index", *loaded)


@pytest.mark.parametrize(
    ("gallery", "arguments", "said"),
    [
        ("both", [], "holds images and audio files: choose with kind"),
        ("empty", [], "holds no image and no audio file"),
        ("one", ["--kind", "audio"], "holds no audio"),
        ("one", ["--split", "test"], "is a folder of files: splits, data_dir and options are for data sets"),
        ("one", ["--branch", "parallel"], "branch='parallel' is for audio"),
        ("one/p0.png", [], "p0.png is a file; expected a folder"),
        ("gone", [], "There is no folder"),
    ],
)
def test_a_gallery_that_cannot_be_used_is_an_error(
    model_folder, tmp_path, monkeypatch, capsys, gallery, arguments, said
):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "one", 1)
    write_images(tmp_path / "both", 1)
    soundfile.write(tmp_path / "both" / "r.wav", np.zeros(8_000), 16_000)
    (tmp_path / "empty").mkdir()
    assert build(gallery, "index", "--model", model_folder, *arguments) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "index").exists() and not list(tmp_path.glob(".index*"))


def test_the_quickstarts_model_is_the_default(images, model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert build(images, "index") == 1
    assert "There is no model in quickstart" in capsys.readouterr().err
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "model").symlink_to(model_folder)
    assert build("spoken_scenes", "gallery", "--split", "test", "--option", "num_scenes=6") == 0
    assert "gallery: 6 images, 128 dimensions, by quickstart/model" in capsys.readouterr().out
    assert EmbeddingIndex.load("gallery").model["name"] == str(model_folder)
    assert search("gallery", "--text", "a red circle", "--top", 6, "--html", "found.html") == 0
    scenes = load_speech_image_dataset("spoken_scenes", split="test", num_scenes=6)
    out = capsys.readouterr().out
    assert all(text in out for text in scenes["text"])
    assert Path("found.html").read_text(encoding="utf-8").count('src="data:image/png;base64,') == 6


def found_by(capsys, *arguments):
    assert search(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_speech_texts_and_pictures_find_what_is_nearest(image_index, images, recordings, loaded, capsys):
    model, processor = loaded
    speech, image = recordings / "r1.wav", images / "p3.png"
    answers = found_by(
        capsys, image_index, "--speech", speech, "--text", "a dog", "a cat", "--image", image, "--top", 3
    )
    with torch.no_grad():
        texts = model.get_text_features(processor(text=["a dog", "a cat"])["input_ids"]).pooler_output
    queries = torch.cat([speech_embeds(loaded, [speech]), texts, image_embeds(loaded, [image])])
    index = EmbeddingIndex.load(image_index)
    scores, rows = (queries @ index.embeddings.T).sort(dim=1, descending=True)
    assert [answer["query"] for answer in answers] == [
        {"speech": str(speech)},
        {"text": "a dog"},
        {"text": "a cat"},
        {"image": str(image)},
    ]
    for answer, own_rows, own_scores in zip(answers, rows[:, :3].tolist(), scores[:, :3].tolist(), strict=True):
        assert [one["row"] for one in answer["found"]] == own_rows
        assert [one["id"] for one in answer["found"]] == [index[row]["id"] for row in own_rows]
        assert [one["score"] for one in answer["found"]] == pytest.approx(own_scores, abs=1e-5)
        assert [one["rank"] for one in answer["found"]] == [1, 2, 3]
    assert answers[3]["found"][0]["path"] == str(image)


def test_recordings_are_found_by_the_branch_that_embedded_them(recordings, loaded, model_folder, tmp_path, capsys):
    build_index(recordings, tmp_path / "index", *loaded, branch="cascaded")
    answers = found_by(capsys, tmp_path / "index", "--speech", recordings / "r2.wav", "--top", 1)
    assert answers[0]["found"][0]["path"] == str(recordings / "r2.wav")
    assert answers[0]["found"][0]["score"] == pytest.approx(1, abs=1e-5)


def test_the_table_names_the_files_and_says_what_they_are(recording_index, images, capsys):
    assert search(recording_index, "--image", images / "p0.png", "--text", "one", "--top", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == '"one": 2 nearest of 5 audio'
    assert lines[1].split() == ["score", "length"]
    assert lines[4] == f"{images / 'p0.png'}: 2 nearest of 5 audio"
    rank, path, *text, score, seconds, unit = lines[6].split()
    assert (rank, unit) == ("1.", "s") and float(seconds) in SECONDS and -1 <= float(score) <= 1
    assert Path(path).is_file() and text in ([], ['"one"'], ['"two"'], ['"four"'], ['"five"'])


def test_the_page_holds_the_pictures_and_the_query(image_index, recordings, images, tmp_path, capsys):
    page = tmp_path / "pages" / "found.html"
    queries = ("--speech", recordings / "r0.wav", "--text", "a <dog>", "--image", images / "p1.png")
    assert search(image_index, *queries, "--top", 4, "--html", page) == 0
    assert f"page: {page}" in capsys.readouterr().out
    html = page.read_text(encoding="utf-8")
    assert html.count("<img") == 3 * 4 + 1 and html.count('src="data:audio/flac;base64,') == 1
    assert "a &lt;dog&gt;" in html and "Found among 9 images" in html and 'class="wave"' in html
    assert "http://" not in html.replace("http://www.w3.org", "") and "https://" not in html


def test_the_page_plays_the_recordings_that_were_found(recording_index, tmp_path):
    assert search(recording_index, "--text", "a dog", "--top", 3, "--html", tmp_path / "found.html") == 0
    assert (tmp_path / "found.html").read_text(encoding="utf-8").count('src="data:audio/flac;base64,') == 3


def test_a_page_of_a_file_that_is_gone_is_an_error(loaded, tmp_path, capsys):
    gallery = write_images(tmp_path / "gallery", 2)
    index = build_index(gallery, tmp_path / "index", *loaded)
    (gallery / "p0.png").unlink()
    assert search(index.folder, "--text", "a dog", "--html", tmp_path / "page.html") == 1
    assert f"({gallery / 'p0.png'}): No such file" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_a_model_that_was_moved_is_asked_for_and_taken(images, model_folder, tmp_path, capsys):
    moved = tmp_path / "model"
    moved.symlink_to(model_folder)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in model_folder.iterdir():
        (copy / file.name).symlink_to(file)
    assert build(images, tmp_path / "index", "--model", copy) == 0
    for file in copy.iterdir():
        file.unlink()
    copy.rmdir()
    capsys.readouterr()
    assert search(tmp_path / "index", "--text", "a dog") == 1
    assert f"is not at {copy} any more: say where it is with --model" in capsys.readouterr().err
    assert search(tmp_path / "index", "--text", "a dog", "--model", moved) == 0


def test_a_search_without_or_with_a_broken_query_is_an_error(image_index, tmp_path, capsys):
    assert search(image_index) == 1
    assert "Search by what? Give --speech FILE, --text TEXT or --image FILE" in capsys.readouterr().err
    assert search(image_index, "--text", " ") == 1
    assert "--text ' ' is empty" in capsys.readouterr().err
    assert search(image_index, "--speech", tmp_path / "gone.wav") == 1
    assert "gone.wav): No such file" in capsys.readouterr().err
    assert search(image_index, "--text", "a dog", "--top", "0") == 2


def test_another_model_is_an_error_that_names_both(image_index, model_folder, loaded, tmp_path, capsys):
    other = SpeechClipPlusModel.from_pretrained(model_folder)
    with torch.no_grad():
        other.clip.visual_projection.weight.mul_(1.1)
    other.save_pretrained(tmp_path / "other")
    loaded[1].save_pretrained(tmp_path / "other")
    assert search(image_index, "--text", "a dog", "--model", tmp_path / "other") == 1
    error = capsys.readouterr().err
    assert f"{tmp_path / 'other'} has other weights" in error and f"made by {model_folder}" in error
