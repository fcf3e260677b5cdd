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
    """An image or an utterance that a query found."""

    source: str  # data URI of the image or the audio
    similarity: float  # cosine similarity with the query
    label: str = ""  # what to call it
    detail: str = ""  # a few words beside it, such as who speaks
    right: bool | None = None  # whether it belongs to the query; None where nobody knows


@dataclass(frozen=True)
class Answer:
    """A query by speech, an image or a text, and what it found."""

    title: str  # what to call the query: its text, its caption, or the name of its file
    kind: str  # "images" or "utterances": what was found
    found: Sequence[FoundItem]  # the nearest, best first
    detail: str = ""  # a few words under the title
    image: str = ""  # data URI of the image that asked; "" for other queries
    waveform: Any = None  # (S,) samples at 16 kHz of the utterance that asked; None for other queries
    keywords: Sequence[Any] = ()  # of that utterance in spoken order, as `model.extract_keywords` gives them
    said: Collection[int] | None = None  # ids of the tokens in its caption; None without a caption
    weights: np.ndarray | None = None  # (T,) CIF's weight of each frame; None without CIF
    frame_seconds: float = 0.02  # seconds from one frame to the next
    rank: int | None = None  # place of the first right item among `searched` ones, from 1; None where nobody knows
    searched: int = 0  # how many items were searched
    right_image: str | None = None  # data URI of the right image, if it is not among those that were found

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
    """A chart."""

    title: str  # heading
    content: Markup  # SVG or HTML
    note: str = ""  # a sentence under it
    is_wide: bool = False  # whether it takes the whole width


@dataclass(frozen=True)
class Report:
    """Everything the page shows; what is empty does not appear."""

    title: str  # heading of the page
    summary: Sequence[str] = ()  # sentences under the heading
    tables: Sequence[ScoreTable] = ()  # results
    figures: Sequence[Figure] = ()  # charts
    # queries with what they found, under (heading, sentence)
    answers: Sequence[tuple[tuple[str, str], Sequence[Answer]]] = ()
    facts: Sequence[tuple[str, str]] = ()  # (name, value) pairs: what was evaluated
    notes: Sequence[str] = ()  # sentences at the end


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
