"""The report: one page with everything inside, and nothing in the wrong place."""

import base64
import io
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
from PIL import Image
from transformers import AutoTokenizer

from speechclip_plus.hub_cards.report import (
    Answer,
    Figure,
    FoundItem,
    Report,
    bar_chart,
    line_chart,
    render_report,
    write_report,
)
from speechclip_plus.hub_cards.results import ScoreRow, ScoreTable
from speechclip_plus.hub_cards.space.waveform import audio_data_uri, image_data_uri, waveform_view
from speechclip_plus.modeling_speechclip_plus.keywords import token_text
from speechclip_plus.modeling_speechclip_plus.outputs import Keyword, Neighbour
from speechclip_plus.trainer.evaluation.alignments import AlignedWord
from speechclip_plus.trainer.tiny_backbones import tiny_backbone


class Page(HTMLParser):
    """Collects elements with their attributes, and the text."""

    VOID = {"meta", "link", "img", "br", "line", "rect", "path", "polygon", "polyline", "circle", "i"}

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self.open = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def of(self, tag, kind=None):
        return [a for name, a in self.elements if name == tag and (kind is None or kind in a.get("class", "").split())]


@pytest.fixture(scope="module")
def waveform():
    return np.sin(np.linspace(0, 2000, 32_000)).astype(np.float32) * np.linspace(0, 1, 32_000, dtype=np.float32)


@pytest.fixture(scope="module")
def report(waveform):
    audio = audio_data_uri(waveform)
    colours = [image_data_uri(Image.new("RGB", (8, 8), (value, 0, 0))) for value in (10, 20, 30)]
    query = Answer(
        title="a <red> ship & co",
        kind="images",
        found=[
            FoundItem(colours[0], 0.9, right=False),
            FoundItem(colours[1], 0.8, right=True),
            FoundItem(colours[2], 0.7, right=False),
        ],
        detail="voice m3",
        waveform=waveform,
        keywords=[
            Keyword("red", 1, 0.5, 0.0, 0.5, (Neighbour("red", 1, 0.5), Neighbour("<b>pink</b>", 2, 0.4))),
            Keyword("ship", 3, 0.4, 0.5, 2.0, ()),
        ],
        said={1},
        weights=np.full(100, 0.25),
        rank=2,
        searched=500,
    )
    speech = [FoundItem(audio, 0.9, "first", right=False), FoundItem(audio, 0.8, "second", right=True)]
    return Report(
        title="A title",
        summary=["A sentence."],
        facts=[("seed", "7")],
        tables=[ScoreTable("Scores", ["R@1", "R@10"], [ScoreRow("parallel", ["61.2", "95.1"], ["0.2", "2.0"])])],
        figures=[Figure("Loss", line_chart({"total": ([1, 2, 3], [3.0, 2.0, 1.0])}, "loss"))],
        answers=[
            (("From speech", ""), [query]),
            (("From images", "A sentence."), [Answer("", "utterances", speech, image=colours[0], rank=2, searched=9)]),
        ],
        notes=["A note."],
    )


@pytest.fixture(scope="module")
def page(report):
    return Page(render_report(report))


def test_the_page_needs_nothing_from_elsewhere(report):
    html = render_report(report)
    for _, attributes in Page(html).elements:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not re.search(r"https?://|url\(|@import|<script [^>]", html)


def test_every_element_is_closed(page):
    assert page.open == []


def test_what_comes_from_data_is_escaped(report):
    html = render_report(report)
    assert "a &lt;red&gt; ship &amp; co" in html and "<red>" not in html
    assert "<b>pink" not in html


def test_the_right_picture_and_no_other_is_marked(page, report):
    right = [index for index, (tag, a) in enumerate(page.elements) if tag == "li" and a.get("class") == "right"]
    sources = [page.elements[index + 1][1]["src"] for index in right if page.elements[index + 1][0] == "img"]
    assert sources == [report.answers[0][1][0].found[1].source]


def test_there_are_as_many_players_and_pictures_as_recordings_and_hits(page):
    assert len(page.of("audio")) == 1 + 2
    assert len(page.of("img")) == 3 + 1
    assert all("alt" in attributes for attributes in page.of("img"))


def test_what_is_wider_than_a_phone_scrolls_and_the_keyboard_reaches_it(page):
    places = page.of("div", "scroll")
    assert len(places) == 1 + 1 + 1 + 1  # results, chart, waveform, keywords
    assert all(place["tabindex"] == "0" and place["role"] == "region" and place["aria-label"] for place in places)


def test_a_chart_of_an_utterance_has_a_legend(page):
    text = " ".join(" ".join(page.text).split())
    for part in ("keyword that was said", "other keyword", "waveform", "CIF weight of each frame (highest 0.25)"):
        assert part in text


def test_a_keyword_plays_its_moment_by_mouse_touch_and_keyboard(report, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    write_report(tmp_path / "report.html", report)
    audio = "document.querySelector('article audio')"
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True).new_page()
        page.goto(f"file://{tmp_path}/report.html")
        red, ship = page.get_by_role("button", name="red"), page.get_by_role("button", name="ship")
        for press, end in ((red.tap, 0.5), (lambda: ship.press("Enter"), 2.0), (red.click, 0.5)):
            press()
            page.wait_for_function(f"{audio}.currentTime >= {end} && {audio}.paused")
            assert page.evaluate(f"{audio}.currentTime") < end + 0.4
        assert page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]") == [390, 390]
        browser.close()


def test_figures_stand_beside_chance(page):
    text = " ".join(" ".join(page.text).split())
    assert "parallel 61.2 0.2 95.1 2.0" in text
    assert "right one in place 2 of 500" in text


def test_the_audio_in_the_page_is_the_recording(report, waveform):
    kind, content = re.search(r'<audio[^>]* src="(.*?)"', report.answers[0][1][0].view)[1].split(",", 1)
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(content)))
    assert (kind, rate) == ("data:audio/flac;base64", 16_000)
    np.testing.assert_allclose(samples, waveform, atol=1e-4)


@pytest.mark.parametrize(("side", "kind", "size"), [(64, "image/png", (64, 64)), (600, "image/jpeg", (256, 256))])
def test_large_pictures_are_scaled_down(side, kind, size):
    head, content = image_data_uri(Image.new("RGB", (side, side), (9, 99, 199))).split(",", 1)
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert head == f"data:{kind};base64" and image.size == size


def paths_of(chart, kind):
    """Coordinates (n, 2) of every path in the groups of a class."""
    groups = re.findall(rf'<g class="{kind}"[^>]*>(.*?)</g>', str(chart), flags=re.DOTALL)
    paths = [path for group in groups for path in re.findall(r'<path[^>]* d="([^"]*)"', group)]
    return [np.array([[float(v) for v in p] for p in re.findall(r"([-\d.]+) ([-\d.]+)", path)]) for path in paths]


def test_keywords_and_true_words_stand_over_their_moments(waveform):
    keywords = [Keyword("red", 1, 0.5, 0.5, 1.0, ()), Keyword("nowhere", 2, 0.5, None, None, ())]
    words = [AlignedWord("<a>", 0.0, 0.3), AlignedWord("red", 0.4, 1.2)]
    view = waveform_view(waveform, keywords, {1}, words)
    assert 'x="25.00" width="25.00"' in view  # 0.5 s of 2 s
    assert re.findall(r"<button.*?>(\w+)</button>", view) == ["red"]
    shown = re.findall(r'<span class="true-word" style="left:([\d.]+)%;width:([\d.]+)%".*?>(.*?)</span>', view)
    assert shown == [("0.00", "15.00", "&lt;a&gt;"), ("20.00", "40.00", "red")]
    assert view.index("true-word") < view.index("<button") and "true-word" not in waveform_view(waveform, keywords)


def points_of(view, kind):
    (path,) = re.findall(rf'<path class="{kind}" d="M(.*?)Z"', view)
    return np.array([[float(value) for value in point.split()] for point in path.split("L")])


def test_weights_are_drawn_to_scale_up_to_the_highest(waveform):
    weights = np.array([0.0, 0.1, 0.2, 0.05])
    area = points_of(waveform_view(waveform, [], weights=weights, frame_seconds=0.5), "weights")
    np.testing.assert_allclose((140 - area[1:-1, 1]) / 36, weights / 0.2, atol=0.01)
    np.testing.assert_allclose(area[1:-1, 0], [12.5, 37.5, 62.5, 87.5])  # the middles of the frames


def test_a_curve_falls_on_the_chart_where_its_values_fall():
    chart = str(line_chart({"loss": ([0, 50, 100], [4.0, 2.0, float("nan")]), "none": ([], [])}, "loss"))
    curve = re.search(
        r'<path d="M ([-\d.]+) ([-\d.]+) \nL ([-\d.]+) ([-\d.]+) \n" style="[^"]*var\(--curve-0\)', chart
    )
    x0, y0, x1, y1 = map(float, curve.groups())
    assert x1 > x0 and y1 > y0  # later, and lower on the page
    assert ">loss<" in chart and ">none<" not in chart


def test_bars_are_as_high_as_their_values():
    chart = str(bar_chart({"0": 0.25, "1": 0.75}, "weight", "layer"))
    heights = [np.ptp(path[:, 1]) for path in paths_of(chart, "bar")]
    assert heights[0] / heights[1] == pytest.approx(1 / 3, abs=0.01)


def test_nothing_to_draw_is_an_empty_chart():
    assert str(line_chart({"loss": ([], [])}, "loss")) == ""


def test_silence_is_drawn():
    wave = points_of(waveform_view(np.zeros(800, dtype=np.float32), []), "wave")
    np.testing.assert_allclose(wave[:, 1], 50, atol=1)


def test_a_report_without_training_or_answers_known_renders(waveform):
    query = Answer("my.wav", "images", [FoundItem("data:,", 0.5, "my cat.jpg")], waveform=waveform)
    page = Page(render_report(Report(title="Answers", answers=[(("", ""), [query])])))
    assert "my cat.jpg" in " ".join(page.text)
    assert not page.of("li", "right") and not page.of("table")


def test_every_token_has_a_text_that_can_be_printed():
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone("clip"))
    texts = [token_text(tokenizer, token) for token in range(len(tokenizer))]
    assert all(text.isprintable() and text.strip() and "\ufffd" not in text for text in texts)
    piece = tokenizer("\x7f", add_special_tokens=False)["input_ids"][-1]
    assert token_text(tokenizer, piece) == tokenizer.convert_ids_to_tokens(piece).removesuffix("</w>")
    word = tokenizer("red", add_special_tokens=False)["input_ids"][-1]
    assert token_text(tokenizer, word) == tokenizer.decode([word]).strip()


def test_a_failed_write_leaves_the_old_report(tmp_path, report, monkeypatch):
    file = tmp_path / "report.html"
    file.write_text("old")
    monkeypatch.setattr("speechclip_plus.hub_cards.report.render_report", lambda report: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(file, report)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
