"""Charts of reports and cards, drawn by matplotlib: SVG in pages, PNG in cards.

Colours in SVG become the page's CSS variables, so that charts follow its light and dark themes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = tuple[Sequence[float], Sequence[float]]
"""Steps and values of a curve."""

COLOURS = ("#0b6e69", "#b4530a", "#5b4bb3", "#9d2b5e", "#3d6b1f")
# Colours of the page's light theme, by the name of their CSS variable.
_THEME = {
    "ink": "#1c1e21",
    "soft": "#5c6169",
    "line": "#dfe2e6",
    "hit": "#17692f",
    "hit-soft": "#d9efdd",
    "miss-soft": "#e9ebee",
    "weight": "#b4530b",
    "wave": "#86929b",
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
_RANK_EDGES = (1, 2, 3, 6, 11, 21, 51, 101, 201, 501, 1001, 2001, 5001, 10_001, 20_001)
_SMALLEST, _LARGEST = 0.8, 2.6  # letters of the keyword cloud, in rem
_WAVE_COLUMNS = 380


def line_chart(curves: Mapping[str, Series], y_label: str, x_label: str = "step") -> Markup:
    """Draw named curves as SVG; an empty string where there is nothing to draw.

    Args:
        curves: Name to (x, y); values that are not finite are left out.
        y_label: Label of the vertical axis, which starts at 0; if it ends with "%", the axis ends at 100.
        x_label: Label of the horizontal axis.
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
    """Draw panels of curves over training steps side by side, as a PNG for cards.

    Args:
        panels: By the label of its vertical axis, the curves of each panel; see `line_chart`.

    Returns:
        The PNG file; `None` if there is nothing to draw.
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


def speech_chart(
    waveform: np.ndarray,
    weights: np.ndarray | None,
    frame_seconds: float,
    keywords: Sequence[Any],
    said: Collection[int] = (),
) -> Markup:
    """Draw keywords over the waveform, with CIF's weights under it, all on one time axis.

    Keywords are buttons with their times, by which the page plays them.

    Args:
        waveform: `(S,)` samples at 16 kHz.
        weights: `(T,)` CIF's weight of each frame; `None` leaves them out.
        frame_seconds: Seconds from one frame to the next.
        keywords: As `model.extract_keywords` gives them; those without times are not drawn.
        said: Ids of the tokens in the caption: keywords among them get a colour of their own.
    """
    seconds = len(waveform) / 16_000
    figure, (axes,) = _figure(7.6, 1.8)
    for keyword in keywords:
        if keyword.start is not None and keyword.end is not None:
            _draw_keyword(axes, keyword, seconds, keyword.id in said)
    starts = np.linspace(0, len(waveform), min(_WAVE_COLUMNS, len(waveform)), endpoint=False).astype(int)
    peak = max(float(np.abs(waveform).max()), 1e-4)
    low, high = np.minimum.reduceat(waveform, starts) / peak, np.maximum.reduceat(waveform, starts) / peak
    times = (starts + len(waveform) / len(starts) / 2) / 16_000
    axes.fill_between(times, low, high, color=_THEME["wave"], linewidth=0.5, gid="wave", clip_on=False)
    if weights is not None and len(weights):
        heights = np.asarray(weights, dtype=float) / max(float(np.max(weights)), 1e-3)
        centres = (np.arange(len(weights)) + 0.5) * frame_seconds
        axes.fill_between(
            centres, -2.2, heights - 2.2, color=_THEME["weight"], alpha=0.4, gid="weights", clip_on=False
        )
    axes.set(xlim=(0, seconds), ylim=(-2.2, 2.0), yticks=[], xlabel="seconds")
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    words = ", ".join(keyword.text for keyword in keywords) or "none"
    return _svg(figure, f"Waveform of {seconds:.1f} seconds; keywords: {words}", "speech")


def bar_chart(labels: Sequence[str], groups: Mapping[str, Sequence[float]], y_label: str, x_label: str) -> Markup:
    """Draw bars side by side for each label, as SVG.

    Args:
        labels: Under the bars.
        groups: Name to one value, at least 0, per label.
        y_label: Label of the vertical axis.
        x_label: Label of the horizontal axis.
    """
    figure, (axes,) = _figure(5.4, 2.8)
    width = 0.8 / len(groups)
    for order, (name, values) in enumerate(groups.items()):
        places = np.arange(len(labels)) + (order - (len(groups) - 1) / 2) * width
        bars = axes.bar(places, values, width * 0.92, label=name, color=COLOURS[order % len(COLOURS)], clip_on=False)
        for bar in bars:
            bar.set_gid("bar")
    every = math.ceil(max(map(len, labels)) * len(labels) / 60)  # labels must not run into each other
    axes.set_xticks(range(0, len(labels), every), labels[::every])
    axes.grid(False, axis="x")
    axes.set(xlabel=x_label, ylabel=y_label)
    if len(groups) > 1:
        _legend(axes)
    described = (
        f"{name}: " + ", ".join(f"{label} {value:.3g}" for label, value in zip(labels, values, strict=True))
        for name, values in groups.items()
    )
    return _svg(figure, "; ".join([y_label, *described]))


def rank_histogram(ranks: Mapping[str, Any]) -> Markup:
    """Draw how many percent of the queries have their right answer at which rank (from 1); the steps widen."""
    values = {name: np.asarray(group) for name, group in ranks.items()}
    last = max(int(group.max()) for group in values.values())
    edges = [edge for edge in _RANK_EDGES if edge <= last]
    labels = [
        f"{low}" if high == low + 1 else f"{low}+" if high is None else f"{low}-{high - 1}"
        for low, high in zip(edges, [*edges[1:], None], strict=True)
    ]
    shares = {
        name: (100.0 * np.histogram(group, [*edges, np.inf])[0] / len(group)).tolist()
        for name, group in values.items()
    }
    return bar_chart(labels, shares, "queries, %", "rank of the right answer")


def scatter_chart(groups: Mapping[str, np.ndarray], axis_labels: tuple[str, str]) -> Markup:
    """Draw points `(n, 2)` by group, as SVG."""
    figure, (axes,) = _figure(5.4, 3.6)
    for order, (name, points) in enumerate(groups.items()):
        colour = COLOURS[order % len(COLOURS)]
        axes.scatter(points[:, 0], points[:, 1], 14, colour, alpha=0.55, linewidths=0, label=name, clip_on=False)
    axes.set(xlabel=axis_labels[0], ylabel=axis_labels[1], xticks=[], yticks=[])
    _legend(axes)
    return _svg(figure, ", ".join(f"{len(points)} points of {name}" for name, points in groups.items()))


def principal_components(groups: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], list[float]]:
    """Project embeddings onto the two directions in which all of them together vary most.

    Args:
        groups: Name to embeddings `(n, P)`.

    Returns:
        Coordinates `(n, 2)` by name, and the share of the variance in percent of each direction.
    """
    values = np.concatenate([np.asarray(group, dtype=np.float64) for group in groups.values()])
    values -= values.mean(0)
    _, sizes, directions = np.linalg.svd(values, full_matrices=False)
    points = np.zeros((len(values), 2))
    points[:, : len(sizes[:2])] = values @ directions[:2].T
    shares = [*(100.0 * sizes[:2] ** 2 / max(float((sizes**2).sum()), 1e-30)).tolist(), 0.0][:2]
    ends = np.cumsum([len(group) for group in groups.values()])[:-1]
    return dict(zip(groups, np.split(points, ends), strict=True)), shares


def keyword_cloud(counts: Mapping[str, int], kind: str) -> Markup:
    """Write words in HTML, the larger the more often they occur.

    Args:
        counts: How often each word occurs.
        kind: "hit", "miss" or "plain", which decides the colour.
    """
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


def _figure(width: float, height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(width, height))
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


def _draw_keyword(axes: Axes, keyword: Any, seconds: float, is_said: bool) -> None:
    soft = _THEME["hit-soft" if is_said else "miss-soft"]
    start, end = max(keyword.start, 0.0), min(keyword.end, seconds)
    width = max(end - start, seconds / 500)
    button = f"keyword {start:.3f} {end:.3f} {keyword.text}"
    axes.axvspan(start, start + width, color=soft, alpha=0.55, linewidth=0, gid=button, clip_on=False)
    axes.fill_between([start, start + width], 1.2, 2.0, color=soft, linewidth=0, gid="word", clip_on=False)
    # A narrow span gets smaller letters; the text never runs into its neighbour.
    look: Any = {"size": min(9.0, max(4.0, 760 * width / seconds / max(len(keyword.text), 1)))}
    look |= {"color": _THEME["hit" if is_said else "soft"], "weight": "bold", "ha": "center", "va": "center"}
    axes.text(start + width / 2, 1.58, keyword.text.replace("$", r"\$"), gid="word", **look)


def _svg(figure: Figure, description: str, kind: str = "chart") -> Markup:
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context(_RC):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' clip-path="url\([^)]*\)"', "", text)  # all is inside, and ids would meet others of the page
    text = re.sub(r'<g id="(word|wave|weights|bar)">', r'<g class="\1">', text)
    button = r'<g class="keyword" role="button" tabindex="0" aria-label="\3" data-start="\1" data-end="\2">'
    text = re.sub(r'<g id="keyword ([\d.]+) ([\d.]+) ([^"]*)">', button, text)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    view_box = re.search(r'viewBox="[^"]*"', text)
    assert view_box is not None
    role = "group" if kind == "speech" else "img"  # an image would hide its buttons
    head = f'<svg class="{kind}" {view_box[0]} role="{role}" aria-label="{escape(description)}">'
    text = head + text[text.index(">") + 1 :]
    text = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", text)
    for name, colour in _THEME.items():
        text = text.replace(colour, f"var(--{name})")
    return Markup(text)
