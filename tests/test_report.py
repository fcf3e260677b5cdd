"""The report: one page with everything inside, and nothing in the wrong place."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
from PIL import Image

from speechclip_plus.hub_cards.report import (
    FoundImage,
    FoundSpeech,
    ImageQuery,
    Report,
    SpeechQuery,
    SpokenKeyword,
    audio_data_uri,
    image_data_uri,
    render_report,
    write_report,
)
from speechclip_plus.hub_cards.report_charts import line_chart, speech_chart
from speechclip_plus.hub_cards.results import ScoreRow, ScoreTable


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
    query = SpeechQuery(
        title="a <red> ship & co",
        audio=audio,
        waveform=waveform,
        images=[
            FoundImage(colours[0], 0.9, False),
            FoundImage(colours[1], 0.8, True),
            FoundImage(colours[2], 0.7, False),
        ],
        keywords=[
            SpokenKeyword("red", 0.5, 0.0, 0.5, True, ["<b>pink</b>"]),
            SpokenKeyword("ship", 0.4, 0.5, 2.0, False),
        ],
        weights=np.full(100, 0.25),
        speaker="voice m3",
        rank=2,
        searched=500,
    )
    speech = [FoundSpeech(audio, "first", 0.9, False), FoundSpeech(audio, "second", 0.8, True)]
    return Report(
        title="A title",
        summary=["A sentence."],
        facts=[("seed", "7")],
        tables=[ScoreTable("Scores", ["R@1", "R@10"], [ScoreRow("parallel", ["61.2", "95.1"], ["0.2", "2.0"])])],
        speech_queries=[query],
        image_queries=[ImageQuery(colours[0], speech, 2, 500)],
        losses={"total": ([1, 2, 3], [3.0, 2.0, 1.0])},
        recalls={"parallel": ([1, 3], [10.0, 60.0])},
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
    assert not re.search(r"https?://|url\(|@import|<script", html)


def test_every_element_is_closed(page):
    assert page.open == []


def test_what_comes_from_data_is_escaped(report):
    html = render_report(report)
    assert "a &lt;red&gt; ship &amp; co" in html and "<red>" not in html
    assert "<b>pink" not in html


def test_the_right_picture_and_no_other_is_marked(page, report):
    right = [index for index, (tag, a) in enumerate(page.elements) if tag == "li" and a.get("class") == "right"]
    sources = [page.elements[index + 1][1]["src"] for index in right if page.elements[index + 1][0] == "img"]
    assert sources == [report.speech_queries[0].images[1].source]


def test_there_are_as_many_players_and_pictures_as_recordings_and_hits(page):
    assert len(page.of("audio")) == 1 + 2
    assert len(page.of("img")) == 3 + 1
    assert all("alt" in attributes for attributes in page.of("img"))


def test_figures_stand_beside_chance(page):
    text = " ".join(" ".join(page.text).split())
    assert "parallel 61.2 0.2 95.1 2.0" in text
    assert "right picture in place 2 of 500" in text


def test_the_audio_in_the_page_is_the_recording(report, waveform):
    kind, content = report.speech_queries[0].audio.split(",", 1)
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(content)))
    assert (kind, rate) == ("data:audio/flac;base64", 16_000)
    np.testing.assert_allclose(samples, waveform, atol=1e-4)


@pytest.mark.parametrize(("side", "kind", "size"), [(64, "image/png", (64, 64)), (600, "image/jpeg", (256, 256))])
def test_large_pictures_are_scaled_down(side, kind, size):
    head, content = image_data_uri(Image.new("RGB", (side, side), (9, 99, 199))).split(",", 1)
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert head == f"data:{kind};base64" and image.size == size


def test_keywords_stand_over_their_moments(waveform):
    keywords = [SpokenKeyword("red", 0.5, 0.5, 1.0, True), SpokenKeyword("nowhere", 0.5, None, None)]
    chart = Page(str(speech_chart(waveform, np.full(100, 0.5), 0.02, keywords)))
    width = float(chart.of("svg")[0]["viewbox"].split()[2])
    (chip,) = chart.of("rect", "chip")
    assert "hit" in chip["class"]
    assert float(chip["x"]) == pytest.approx(width * 0.5 / 2, abs=1.1)  # at 0.5 s of 2 s
    assert float(chip["x"]) + float(chip["width"]) == pytest.approx(width * 1.0 / 2, abs=1.1)
    assert "red" in chart.text and "nowhere" not in chart.text


def test_weights_are_drawn_to_scale_up_to_the_highest(waveform):
    weights = np.array([0.0, 0.1, 0.2, 0.05])
    chart = Page(str(speech_chart(waveform, weights, 0.02, [])))
    points = [[float(v) for v in point.split(",")] for point in chart.of("polygon", "weights")[0]["points"].split()]
    base, curve = points[0][1], points[1:-1]  # the first and the last point close the area on the axis
    heights = np.array([base - y for _, y in curve])
    np.testing.assert_allclose(heights / heights.max(), weights / 0.2, atol=0.01)


def test_a_curve_falls_on_the_chart_where_its_values_fall():
    chart = Page(str(line_chart({"loss": ([0, 50, 100], [4.0, 2.0, float("nan")]), "none": ([], [])}, unit="")))
    (curve,) = chart.of("polyline")
    (x0, y0), (x1, y1) = ([float(v) for v in point.split(",")] for point in curve["points"].split())
    assert x1 > x0 and y1 > y0  # later, and lower on the page
    assert "loss" in chart.text and "none" not in chart.text


def test_nothing_to_draw_is_an_empty_chart():
    assert str(line_chart({"loss": ([], [])}, unit="")) == ""


def test_silence_is_drawn(waveform):
    assert 'class="wave"' in str(speech_chart(np.zeros(800, dtype=np.float32), None, 0.02, []))


def test_a_report_without_training_or_answers_known_renders(waveform):
    query = SpeechQuery("my.wav", audio_data_uri(waveform), waveform, [FoundImage("data:,", 0.5, None, "my cat.jpg")])
    page = Page(render_report(Report(title="Answers", speech_queries=[query])))
    assert "my cat.jpg" in " ".join(page.text)
    assert not page.of("li", "right") and not page.of("table")


def test_a_failed_write_leaves_the_old_report(tmp_path, report, monkeypatch):
    file = tmp_path / "report.html"
    file.write_text("old")
    monkeypatch.setattr("speechclip_plus.hub_cards.report.render_report", lambda report: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(file, report)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
