"""Charts of an evaluation as inline SVG and HTML: bars, point clouds, keyword clouds."""

import math
from collections.abc import Mapping, Sequence

import torch
from markupsafe import Markup, escape
from torch import Tensor

from .report_charts import COLOURS

_WIDTH, _HEIGHT = 520, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 12, 30
_SMALLEST, _LARGEST = 0.8, 2.6  # letters of the keyword cloud, in rem
_EDGES = (1, 2, 3, 6, 11, 21, 51, 101, 201, 501, 1001, 2001, 5001, 10_001, 20_001)


def bar_chart(labels: Sequence[str], groups: Mapping[str, Sequence[float]], unit: str = "") -> Markup:
    """Draw bars side by side for each label.

    Args:
        labels: under the bars.
        groups: name to one value, at least 0, per label.
        unit: written behind the numbers of the vertical axis.
    """
    highest = max((value for values in groups.values() for value in values), default=0.0) or 1.0
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    place, bar = width / len(labels), width / len(labels) * 0.8 / len(groups)
    parts = [
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{highest * share:.2g}{unit}</text>'
        for share, y in ((share, _TOP + (1 - share) * height) for share in (0.0, 0.5, 1.0))
    ]
    every = math.ceil(max(len(label) for label in labels) * 7.5 / place)  # labels must not run into each other
    for number, label in enumerate(labels):
        if number % every == 0:
            x = _LEFT + (number + 0.5) * place
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{_HEIGHT - 10}" text-anchor="middle">{escape(label)}</text>'
            )
    for order, values in enumerate(groups.values()):
        for number, value in enumerate(values):
            x = _LEFT + number * place + 0.1 * place + order * bar
            tall = value / highest * height
            parts.append(
                f'<rect class="bar" x="{x:.1f}" y="{_TOP + height - tall:.1f}" width="{max(bar - 1, 0.5):.1f}" '
                f'height="{tall:.1f}" fill="{COLOURS[order % len(COLOURS)]}"/>'
            )
    described = "; ".join(
        f"{name}: " + ", ".join(f"{label} {value:.3g}{unit}" for label, value in zip(labels, values, strict=True))
        for name, values in groups.items()
    )
    return _with_legend(list(groups), _svg(_WIDTH, _HEIGHT, parts, described))


def rank_histogram(ranks: Mapping[str, Tensor]) -> Markup:
    """Draw how many percent of the queries have their right answer at which rank; the steps widen."""
    last = max(int(values.max()) for values in ranks.values())
    edges = [edge for edge in _EDGES if edge <= last]
    labels = [
        f"{low}" if high == low + 1 else f"{low}+" if high is None else f"{low}-{high - 1}"
        for low, high in zip(edges, [*edges[1:], None], strict=True)
    ]
    inner = torch.tensor(edges[1:])
    groups = {
        name: (
            100.0 * torch.bucketize(values, inner, right=True).bincount(minlength=len(edges)).double() / len(values)
        ).tolist()
        for name, values in ranks.items()
    }
    return bar_chart(labels, groups, "%")


def scatter_chart(groups: Mapping[str, Tensor], axes: tuple[str, str]) -> Markup:
    """Draw points.

    Args:
        groups: name to coordinates (n, 2).
        axes: what the horizontal and the vertical axis are.
    """
    points = torch.cat(list(groups.values())).double()
    low, high = points.amin(0), points.amax(0)
    span = (high - low).clamp(min=1e-9)
    width, height = _WIDTH, 360
    parts = []
    for order, values in enumerate(groups.values()):
        for x, y in ((values.double() - low) / span).tolist():
            parts.append(
                f'<circle class="point" cx="{20 + x * (width - 40):.1f}" cy="{height - 34 - y * (height - 54):.1f}" '
                f'r="2.6" fill="{COLOURS[order % len(COLOURS)]}"/>'
            )
    parts.append(f'<text class="tick" x="{width / 2}" y="{height - 8}" text-anchor="middle">{escape(axes[0])}</text>')
    parts.append(
        f'<text class="tick" x="{-(height - 34) / 2}" y="10" transform="rotate(-90)" text-anchor="middle">'
        f"{escape(axes[1])}</text>"
    )
    described = ", ".join(f"{len(values)} points of {name}" for name, values in groups.items())
    return _with_legend(list(groups), _svg(width, height, parts, described))


def principal_components(groups: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[float]]:
    """Project embeddings onto the two directions in which all of them together vary most.

    Args:
        groups: name to embeddings (n, P).

    Returns:
        Coordinates (n, 2) by name, and the share of the variance in percent of each direction.
    """
    together = torch.cat(list(groups.values())).double()
    mean = together.mean(0)
    _, sizes, directions = torch.linalg.svd(together - mean, full_matrices=False)
    total = sizes.square().sum().clamp(min=1e-30)
    axes = torch.zeros(together.shape[1], 2, dtype=torch.float64)
    axes[:, : len(directions[:2])] = directions[:2].T
    axes *= torch.where(axes.sum(0) < 0, -1.0, 1.0)  # a direction's sign means nothing: make it always the same
    shares = [*(100.0 * sizes[:2].square() / total).tolist(), 0.0][:2]
    return {name: (values.double() - mean) @ axes for name, values in groups.items()}, shares


def keyword_cloud(counts: Mapping[str, int], kind: str) -> Markup:
    """Write words the larger, the more often they occur.

    Args:
        counts: how often each word occurs.
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


def _with_legend(names: Sequence[str], chart: str) -> Markup:
    if len(names) < 2:
        return Markup(chart)
    legend = "".join(
        f'<span><i style="background:{COLOURS[order % len(COLOURS)]}"></i>{escape(name)}</span>'
        for order, name in enumerate(names)
    )
    return Markup(f'<div class="legend">{legend}</div>{chart}')


def _svg(width: int, height: int, parts: Sequence[str], described: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(described)}">'
        f"{''.join(parts)}</svg>"
    )
