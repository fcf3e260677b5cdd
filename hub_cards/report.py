"""Reports: one HTML page to look at and to listen to, with everything it needs inside."""

import base64
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from ..atomic_files import write_text
from .charts import speech_chart
from .results import ScoreTable

_FOLDER = resources.files("speechclip_plus.hub_cards")


@dataclass(frozen=True)
class FoundItem:
    """An image or an utterance that a query found.

    Attributes:
        source: data URI of the image or the audio.
        similarity: cosine similarity with the query.
        label: what to call it.
        detail: a few words beside it, such as who speaks.
        right: whether it belongs to the query; None where nobody knows.
    """

    source: str
    similarity: float
    label: str = ""
    detail: str = ""
    right: bool | None = None


@dataclass(frozen=True)
class Answer:
    """A query by speech, an image or a text, and what it found.

    Attributes:
        title: what to call the query: its text, its caption, or the name of its file.
        kind: "images" or "utterances": what was found.
        found: the nearest, best first.
        detail: a few words under the title.
        image: data URI of the image that asked; "" for other queries.
        waveform: (S,) samples at 16 kHz of the utterance that asked; None for other queries.
        keywords: of that utterance in spoken order, as `model.extract_keywords` gives them.
        said: ids of the tokens in its caption; None without a caption.
        weights: (T,) CIF's weight of each frame; None without CIF.
        frame_seconds: seconds from one frame to the next.
        rank: place of the first right item among `searched` ones, from 1; None where nobody knows.
        searched: how many items were searched.
        right_image: data URI of the right image, if it is not among those that were found.
    """

    title: str
    kind: str
    found: Sequence[FoundItem]
    detail: str = ""
    image: str = ""
    waveform: Any = None
    keywords: Sequence[Any] = ()
    said: Collection[int] | None = None
    weights: np.ndarray | None = None
    frame_seconds: float = 0.02
    rank: int | None = None
    searched: int = 0
    right_image: str | None = None

    @property
    def audio(self) -> str:
        """Data URI of the utterance that asked."""
        return audio_data_uri(self.waveform)

    @property
    def chart(self) -> Markup:
        """SVG of the waveform, CIF's weights and the keywords."""
        return speech_chart(self.waveform, self.weights, self.frame_seconds, self.keywords, self.said or ())


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


@dataclass(frozen=True)
class Report:
    """Everything the page shows; what is empty does not appear.

    Attributes:
        title: heading of the page.
        summary: sentences under the heading.
        tables: results.
        figures: charts.
        answers: queries with what they found, under (heading, sentence).
        facts: (name, value) pairs: what was evaluated.
        notes: sentences at the end.
    """

    title: str
    summary: Sequence[str] = ()
    tables: Sequence[ScoreTable] = ()
    figures: Sequence[Figure] = ()
    answers: Sequence[tuple[tuple[str, str], Sequence[Answer]]] = ()
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()


def render_report(report: Report) -> str:
    """Render the page as HTML without any link to elsewhere."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string((_FOLDER / "templates" / "report.html.jinja").read_text(encoding="utf-8"))
    player = Markup((_FOLDER / "space" / "player.js").read_text(encoding="utf-8"))
    return template.render(report=report, player=player)


def write_report(path: str | Path, report: Report) -> None:
    """Render the page and write it atomically."""
    write_text(Path(path), render_report(report))


def image_data_uri(image: Any, longest_side: int = 256) -> str:
    """Return a PIL image in RGB as the data URI of a PNG, or of a JPEG scaled down if it is larger (in pixels)."""
    is_small = max(image.size) <= longest_side
    file = io.BytesIO()
    image = image.copy()
    image.thumbnail((longest_side, longest_side))
    image.save(file, format="PNG" if is_small else "JPEG", quality=88)
    return _data_uri("image/png" if is_small else "image/jpeg", file.getvalue())


def audio_data_uri(waveform: np.ndarray, sampling_rate: int = 16_000) -> str:
    """Return samples in [-1, 1] as the data URI of a FLAC file, which every current browser plays."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.clip(waveform, -1.0, 1.0), sampling_rate, format="FLAC", subtype="PCM_16")
    return _data_uri("audio/flac", file.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
