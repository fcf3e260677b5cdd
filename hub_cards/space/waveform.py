"""Waveform view: a player, the keywords on the waveform at their moments, and a table of them, as HTML.

The demo, which as a Space runs without this package, and the reports of evaluations both show it.
"""

import base64
import io
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import soundfile
from markupsafe import Markup
from PIL import Image

SAMPLING_RATE = 16_000  # Hz
STYLE = (Path(__file__).parent / "waveform.css").read_text(encoding="utf-8")
PLAYER = (Path(__file__).parent / "player.js").read_text(encoding="utf-8")
_COLUMNS = 300  # of the outline

templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def waveform_view(
    waveform: np.ndarray,
    keywords: Sequence[Any] | None,
    said: Collection[int] | None = None,
    words: Sequence[Any] = (),
    weights: np.ndarray | None = None,
    frame_seconds: float = 0.02,
) -> Markup:
    """Show an utterance; keywords are buttons, by which player.js plays their moments.

    Args:
        waveform: `(S,)` samples at 16 kHz.
        keywords: As `model.extract_keywords` gives them; `None` of a model without.
        said: Ids of the tokens in the caption, which get a colour of their own; `None` without a caption.
        words: The true words, each with `word`, `start` and `end` in seconds; they are written above the keywords.
        weights: `(T,)` CIF's weight of each frame, drawn under the waveform; `None` leaves them out.
        frame_seconds: Seconds from one frame to the next.
    """
    seconds = len(waveform) / SAMPLING_RATE

    def span(start: float, end: float) -> dict[str, float]:
        left, right = (100 * min(max(time / seconds, 0), 1) for time in (start, end))
        return {"left": left, "width": max(right - left, 0.2)}

    timed = [word for word in keywords or [] if word.start is not None]
    middles = [(word.start + word.end) / 2 / seconds for word in timed]  # 0 to 1
    chips = []
    for number, (word, middle) in enumerate(zip(timed, middles, strict=True)):
        # Every other name goes below the waveform, so that each has twice the room.
        room = min((abs(middle - other) for other in middles[number % 2 :: 2] if other != middle), default=0.5)
        kind = "" if said is None else " hit" if word.id in said else " miss"
        chip = {"side": ("below" if number % 2 else "above") + kind, "word": word, **span(word.start, word.end)}
        chips.append({**chip, "at": 100 * middle, "room": 100 * room / (1 + room)})
    view: Any = templates.get_template("waveform.html.jinja").module
    return view.waveform(
        source=audio_data_uri(waveform),
        seconds=seconds,
        outline=_outline(waveform),
        keywords=keywords,
        chips=chips,
        said=said,
        words=[{"word": word, **span(word.start, word.end)} for word in words],
        weights=None if weights is None or not len(weights) else _area(weights, frame_seconds / seconds),
        highest=0.0 if weights is None or not len(weights) else float(np.max(weights)),
    )


def image_data_uri(image: Image.Image, longest_side: int = 256) -> str:
    """Return an image in RGB as the data URI of a PNG, or of a JPEG scaled down if it is larger (in pixels)."""
    kind = "PNG" if max(image.size) <= longest_side else "JPEG"
    file = io.BytesIO()
    image = image.copy()
    image.thumbnail((longest_side, longest_side))
    image.save(file, format=kind, quality=88)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def audio_data_uri(waveform: np.ndarray, sampling_rate: int = SAMPLING_RATE) -> str:
    """Return samples in [-1, 1] as the data URI of a FLAC file, which every current browser plays."""
    file = io.BytesIO()
    soundfile.write(file, np.clip(waveform, -1.0, 1.0), sampling_rate, format="FLAC", subtype="PCM_16")
    return f"data:audio/flac;base64,{base64.b64encode(file.getvalue()).decode()}"


def _outline(waveform: np.ndarray) -> str:
    """Path around the loudest samples of each column, in a square of 100 by 100."""
    columns = min(_COLUMNS, len(waveform))
    starts = np.linspace(0, len(waveform), columns, endpoint=False).astype(int)
    scale = 48 / max(float(np.abs(waveform).max()), 1e-4)
    upper = 50 - scale * np.maximum.reduceat(waveform, starts)
    lower = 50.6 - scale * np.minimum.reduceat(waveform, starts)
    points = [(place + 0.5, y) for place, y in enumerate(upper)]
    points += reversed([(place + 0.5, y) for place, y in enumerate(lower)])
    return f"M{'L'.join(f'{x * 100 / columns:.2f} {y:.1f}' for x, y in points)}Z"


def _area(weights: np.ndarray, frame: float) -> str:
    """Path of weights of frames, each a share `frame` of the width, up to 36 high from the bottom line at 140."""
    heights = 140 - 36 * np.asarray(weights, dtype=float) / max(float(np.max(weights)), 1e-3)
    points = [f"{100 * (place + 0.5) * frame:.2f} {y:.1f}" for place, y in enumerate(heights)]
    return f"M{50 * frame:.2f} 140L{'L'.join(points)}L{100 * (len(heights) - 0.5) * frame:.2f} 140Z"
