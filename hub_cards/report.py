"""Reports and charts: HTML pages with everything they need inside, charts by matplotlib (SVG there, PNG in cards).

Colours in SVG become the page's CSS variables, so that charts follow its light and dark themes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

from ..atomic_files import write_text
from .results import ScoreTable
from .space.waveform import PLAYER, STYLE, templates, waveform_view

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Series = tuple[Sequence[float], Sequence[float]]
"""Steps and values of a curve."""

COLOURS = ("#0b6e69", "#b4530a", "#5b4bb3", "#9d2b5e", "#3d6b1f")
# Colours of the page's light theme, by the name of their CSS variable.
_THEME = {
    "ink": "#1c1e21",
    "soft": "#5c6169",
    "line": "#dfe2e6",
    **{f"curve-{number}": colour for number, colour in enumerate(COLOURS)},
}
_RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "speechclip-plus",
    "font.size": 9,
    "text.color": _THEME["soft"],
    "axes.edgecolor": _THEME["line"],
    "axes.labelcolor": _THEME["soft"],
    "axes.titlecolor": _THEME["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _THEME["line"],
    "xtick.color": _THEME["soft"],
    "ytick.color": _THEME["soft"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
_SMALLEST, _LARGEST = 0.8, 2.6  # letters of the keyword cloud, in rem
_TEMPLATE = Path(__file__).parent / "templates" / "report.html.jinja"


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
    # of that utterance in spoken order, as `model.extract_keywords` gives them; None of a model without
    keywords: Sequence[Any] | None = None
    said: Collection[int] | None = None  # ids of the tokens in its caption; None without a caption
    words: Sequence[Any] = ()  # its true words, each with `word`, `start` and `end` in seconds, if they are known
    weights: np.ndarray | None = None  # (T,) CIF's weight of each frame; None without CIF
    frame_seconds: float = 0.02  # seconds from one frame to the next
    rank: int | None = None  # place of the first right item among `searched` ones, from 1; None where nobody knows
    searched: int = 0  # how many items were searched
    right_image: str | None = None  # data URI of the right image, if it is not among those that were found

    @property
    def view(self) -> Markup:
        """The utterance that asked."""
        return waveform_view(self.waveform, self.keywords, self.said, self.words, self.weights, self.frame_seconds)


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
    template = templates.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(report=report, player=Markup(PLAYER), style=Markup(STYLE))


def write_report(path: str | Path, report: Report) -> None:
    """Render the page and write it atomically."""
    write_text(Path(path), render_report(report))


def line_chart(curves: Mapping[str, Series], y_label: str, x_label: str = "step") -> Markup:
    """Draw named curves as SVG, without values that are not finite; an empty string if there is nothing to draw.

    The vertical axis starts at 0; if `y_label` ends with "%", it ends at 100.
    """
    points = _finite(curves)
    if not points:
        return Markup("")
    figure, (axes,) = _figure(5.4, 2.8)
    _draw_curves(axes, points, y_label, x_label)
    return _svg(
        figure, f"{y_label}; " + ", ".join(f"{name}: {y[-1]:.3g} at the end" for name, (_, y) in points.items())
    )


def training_chart(panels: Mapping[str, Mapping[str, Series]]) -> bytes | None:
    """Draw panels of curves over training steps side by side; each is named by the label of its vertical axis.

    Returns:
        A PNG file; `None` if there is nothing to draw.
    """
    shown = {y_label: points for y_label, curves in panels.items() if (points := _finite(curves))}
    if not shown:
        return None
    figure, all_axes = _figure(5.2 * len(shown), 3.0, len(shown))
    for axes, (y_label, points) in zip(all_axes, shown.items(), strict=True):
        _draw_curves(axes, points, y_label, "step")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=200, metadata={"Software": None})
    return file.getvalue()


def bar_chart(values: Mapping[str, float], y_label: str, x_label: str) -> Markup:
    """Draw a bar for each named value, as SVG."""
    figure, (axes,) = _figure(5.4, 2.8)
    for bar in axes.bar(range(len(values)), list(values.values()), color=COLOURS[0], clip_on=False):
        bar.set_gid("bar")
    every = math.ceil(max(map(len, values)) * len(values) / 60)  # labels must not run into each other
    axes.set_xticks(range(0, len(values), every), list(values)[::every])
    axes.grid(False, axis="x")
    axes.set(xlabel=x_label, ylabel=y_label)
    return _svg(figure, f"{y_label}: " + ", ".join(f"{name} {value:.3g}" for name, value in values.items()))


def keyword_cloud(counts: Mapping[str, int], kind: str) -> Markup:
    """Write words in HTML, the larger the more often they occur; `kind` ("hit", "miss", "plain") gives the colour."""
    if not counts:
        return Markup('<p class="meta">none</p>')
    most = max(counts.values())
    words = "".join(
        f'<span style="font-size:{_SMALLEST + (_LARGEST - _SMALLEST) * math.sqrt(count / most):.2f}rem" '
        f'title="{count}">{escape(word)}<small>{count}</small></span> '
        for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
    return Markup(f'<p class="cloud {kind}">{words}</p>')


def _finite(curves: Mapping[str, Series]) -> dict[str, tuple[list[float], list[float]]]:
    points = {
        name: [(x, y) for x, y in zip(*curve, strict=True) if math.isfinite(y)] for name, curve in curves.items()
    }
    return {name: ([x for x, _ in kept], [y for _, y in kept]) for name, kept in points.items() if kept}


def _figure(width: float, height: float, panels: int = 1) -> tuple[Canvas, list[Axes]]:
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(_RC):
        figure = Canvas(figsize=(width, height))
        return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _draw_curves(
    axes: Axes, points: Mapping[str, tuple[list[float], list[float]]], y_label: str, x_label: str
) -> None:
    for order, (name, (x, y)) in enumerate(points.items()):
        marker = "o" if len(x) == 1 else None
        axes.plot(x, y, marker=marker, label=name, color=COLOURS[order % len(COLOURS)], clip_on=False)
    highest = 100.0 if y_label.endswith("%") else max(1e-9, *(max(y) for _, y in points.values()))
    axes.set(xlabel=x_label, ylabel=y_label, ylim=(0, 1.05 * highest))
    axes.set_xlim(left=0)
    _legend(axes)


def _legend(axes: Axes) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, frameon=False, labelcolor=_THEME["soft"], fontsize=8
    )


def _svg(figure: Canvas, description: str) -> Markup:
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context(_RC):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' clip-path="url\([^)]*\)"', "", text)  # all is inside, and ids would meet others of the page
    text = text.replace('<g id="bar">', '<g class="bar">')
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    view_box = re.search(r'viewBox="[^"]*"', text)
    assert view_box is not None
    head = f'<svg class="chart" {view_box[0]} role="img" aria-label="{escape(description)}">'
    text = head + text[text.index(">") + 1 :]
    text = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", text)
    for name, colour in _THEME.items():
        text = text.replace(colour, f"var(--{name})")
    return Markup(text)
