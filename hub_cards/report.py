"""Reports: one HTML page to look at and to listen to, with everything it needs inside."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from ..atomic_files import write_text
from .charts import Series, line_chart, speech_chart
from .results import ScoreTable

_TEMPLATES = resources.files("speechclip_plus.hub_cards") / "templates"


@dataclass(frozen=True)
class FoundImage:
    """A picture that a query found.

    Attributes:
        source: its data URI.
        similarity: cosine similarity with the query.
        right: whether it is the one that was spoken about; None where nobody knows.
        label: what to write under it.
    """

    source: str
    similarity: float
    right: bool | None = None
    label: str = ""


@dataclass(frozen=True)
class SpokenKeyword:
    """A keyword as the report shows it.

    Attributes:
        text: the subword.
        similarity: cosine similarity of keyword and subword.
        start: where it begins, in seconds; None if the model does not say.
        end: where it ends, in seconds; None likewise.
        in_caption: whether the caption has it; None without a caption.
        neighbours: the next nearest subwords.
    """

    text: str
    similarity: float
    start: float | None
    end: float | None
    in_caption: bool | None = None
    neighbours: Sequence[str] = ()


@dataclass(frozen=True)
class SpeechQuery:
    """A spoken query and what it found.

    Attributes:
        title: what to call it: the caption, or the name of the file.
        audio: data URI of the recording.
        waveform: (S,) samples at 16 kHz.
        images: the nearest pictures, best first.
        keywords: in spoken order.
        weights: (T,) CIF's weight of each frame; None without CIF.
        frame_seconds: seconds from one frame to the next.
        speaker: who speaks, if known.
        rank: place of the right picture among `searched` ones, from 1; None where nobody knows.
        right_image: data URI of the right picture, if it is not among `images`.
        searched: how many pictures were searched.
    """

    title: str
    audio: str
    waveform: np.ndarray
    images: Sequence[FoundImage]
    keywords: Sequence[SpokenKeyword] = ()
    weights: np.ndarray | None = None
    frame_seconds: float = 0.02
    speaker: str = ""
    rank: int | None = None
    right_image: str | None = None
    searched: int = 0

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return len(self.waveform) / 16_000

    @property
    def chart(self) -> str:
        """SVG of the waveform, CIF's weights and the keywords."""
        return speech_chart(self.waveform, self.weights, self.frame_seconds, self.keywords)


@dataclass(frozen=True)
class FoundSpeech:
    """An utterance that a picture found."""

    audio: str
    title: str
    similarity: float
    right: bool | None = None
    speaker: str = ""


@dataclass(frozen=True)
class ImageQuery:
    """A picture and the utterances it found, best first."""

    source: str
    speech: Sequence[FoundSpeech]
    rank: int | None = None
    searched: int = 0
    title: str = ""


@dataclass(frozen=True)
class FoundItems:
    """Any query, and the pictures or recordings that it found, best first.

    Attributes:
        title: what to call it: the text, or the name of the file.
        detail: a few words under it.
        audio: data URI of the recording that asked; "" for other queries.
        chart: SVG of its waveform and keywords.
        source: data URI of the picture that asked; "" for other queries.
        images: pictures that were found.
        speech: recordings that were found.
    """

    title: str
    detail: str = ""
    audio: str = ""
    chart: str = ""
    source: str = ""
    images: Sequence[FoundImage] = ()
    speech: Sequence[FoundSpeech] = ()


@dataclass(frozen=True)
class Figure:
    """A chart.

    Attributes:
        title: heading.
        content: SVG or HTML.
        note: a sentence under it.
        is_wide: whether it takes the whole width.
    """

    title: str
    content: Markup
    note: str = ""
    is_wide: bool = False


@dataclass
class Report:
    """Everything the page shows.

    Attributes:
        title: heading of the page.
        summary: sentences under the heading.
        facts: (name, value) pairs: what was trained on what, for how long.
        facts_heading: heading of the facts.
        tables: results.
        tables_heading: heading of the tables.
        figures: charts of the results.
        speech_queries: speech to pictures.
        image_queries: pictures to speech.
        found: queries of any kind, with what they found.
        losses: curves over training steps: name to (steps, values).
        recalls: curves of the validation over training steps, in percent.
        notes: sentences at the end.
    """

    title: str
    summary: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    facts_heading: str = "How it was trained"
    tables: Sequence[ScoreTable] = ()
    tables_heading: str = "What it learned"
    figures: Sequence[Figure] = ()
    speech_queries: Sequence[SpeechQuery] = ()
    image_queries: Sequence[ImageQuery] = ()
    found: Sequence[FoundItems] = ()
    losses: dict[str, Series] = field(default_factory=dict)
    recalls: dict[str, Series] = field(default_factory=dict)
    notes: Sequence[str] = ()


def render_report(report: Report) -> str:
    """Render the page as HTML without any link to elsewhere."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string((_TEMPLATES / "report.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        report=report,
        loss_chart=line_chart(report.losses, unit="") if report.losses else "",
        recall_chart=line_chart(report.recalls, unit="%", top=100.0) if report.recalls else "",
    )


def write_report(path: str | Path, report: Report) -> None:
    """Render the page and write it atomically."""
    write_text(Path(path), render_report(report))


def image_data_uri(image: Any, longest_side: int = 256) -> str:
    """Return a PIL image as the data URI of a PNG (or of a JPEG if it is a photograph's size), scaled down.

    Args:
        image: a PIL image in RGB.
        longest_side: in pixels; larger pictures are scaled down to it.
    """
    small = max(image.size) <= longest_side
    file = io.BytesIO()
    if small:
        image.save(file, format="PNG")
    else:
        image = image.copy()
        image.thumbnail((longest_side, longest_side))
        image.save(file, format="JPEG", quality=88)
    return _data_uri("image/png" if small else "image/jpeg", file.getvalue())


def audio_data_uri(waveform: np.ndarray, sampling_rate: int = 16_000) -> str:
    """Return samples in [-1, 1] as the data URI of a FLAC file, which every current browser plays."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.clip(waveform, -1.0, 1.0), sampling_rate, format="FLAC", subtype="PCM_16")
    return _data_uri("audio/flac", file.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
