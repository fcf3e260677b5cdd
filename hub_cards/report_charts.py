"""Charts of the report as inline SVG."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from .training_chart import COLOURS, Series, round_step

_SPEECH_WIDTH, _SPEECH_HEIGHT = 760, 176
_KEYWORD_TOP, _KEYWORD_HEIGHT = 4, 26
_WAVE_TOP, _WAVE_HEIGHT = 40, 62
_WEIGHT_TOP, _WEIGHT_HEIGHT = 110, 40
_COLUMNS = 380  # columns of the waveform's outline
_CHART_WIDTH, _CHART_HEIGHT = 520, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 12, 30


def speech_chart(
    waveform: np.ndarray, weights: np.ndarray | None, frame_seconds: float, keywords: Sequence[Any]
) -> Markup:
    """Draw keywords over the waveform, with CIF's weights under it, all on one time axis.

    Args:
        waveform: (S,) samples at 16 kHz.
        weights: (T,) CIF's weight of each frame, drawn up to the highest; None leaves them out.
        frame_seconds: seconds from one frame to the next.
        keywords: with `text`, `start`, `end` (seconds, or None: then the keyword is not drawn) and `in_caption`.
    """
    seconds = len(waveform) / 16_000
    width = _SPEECH_WIDTH

    def x(second: float) -> float:
        return min(max(second / seconds, 0.0), 1.0) * width

    parts = []
    for keyword in keywords:
        if keyword.start is None or keyword.end is None:
            continue
        left, right = x(keyword.start), x(keyword.end)
        kind = {True: "hit", False: "miss", None: "plain"}[keyword.in_caption]
        height = _WEIGHT_TOP + _WEIGHT_HEIGHT - _WAVE_TOP
        parts.append(
            f'<rect class="span {kind}" x="{left + 1:.1f}" y="{_WAVE_TOP}" width="{max(right - left - 2, 1):.1f}" '
            f'height="{height}"/>'
            f'<rect class="chip {kind}" x="{left + 1:.1f}" y="{_KEYWORD_TOP}" '
            f'width="{max(right - left - 2, 1):.1f}" height="{_KEYWORD_HEIGHT}" rx="5"/>'
        )
        # A narrow place gets smaller letters; the text never runs into its neighbour.
        size = min(14.0, max(6.0, 1.7 * (right - left - 4) / max(len(keyword.text), 1)))
        parts.append(
            f'<text class="chip-text {kind}" x="{(left + right) / 2:.1f}" y="{_KEYWORD_TOP + 17.5}" '
            f'font-size="{size:.1f}">{escape(keyword.text)}</text>'
        )
    parts.append(f'<path class="wave" d="{_outline(waveform)}"/>')
    if weights is not None and len(weights):
        base = _WEIGHT_TOP + _WEIGHT_HEIGHT
        highest = max(float(weights.max()), 1e-3)
        points = " ".join(
            f"{x((frame + 0.5) * frame_seconds):.1f},{base - float(weight) / highest * _WEIGHT_HEIGHT:.1f}"
            for frame, weight in enumerate(weights)
        )
        last = x((len(weights) - 0.5) * frame_seconds)
        parts.append(
            f'<polygon class="weights" points="{x(0.5 * frame_seconds):.1f},{base} {points} {last:.1f},{base}"/>'
        )
    axis = _WEIGHT_TOP + _WEIGHT_HEIGHT
    parts.append(f'<line class="axis" x1="0" x2="{width}" y1="{axis}" y2="{axis}"/>')
    step = next(step for step in (0.5, 1, 2, 5, 10, 30, 60, 300, 3600) if seconds / step <= 12 or step == 3600)
    for number in range(int(seconds / step) + 1):
        anchor = "start" if number == 0 else "middle"
        place = x(number * step)
        if place <= width - 14:
            parts.append(
                f'<text class="tick" x="{place:.1f}" y="{axis + 16}" text-anchor="{anchor}">{number * step:g} s</text>'
            )
    words = ", ".join(keyword.text for keyword in keywords) or "none"
    return Markup(
        f'<svg class="speech" viewBox="0 0 {width} {_SPEECH_HEIGHT}" role="img" '
        f'aria-label="{escape(f"Waveform of {seconds:.1f} seconds; keywords: {words}")}">{"".join(parts)}</svg>'
    )


def _outline(waveform: np.ndarray) -> str:
    """Path around the loudest samples of each column."""
    peak = max(float(np.abs(waveform).max()), 1e-4)
    edges = np.linspace(0, len(waveform), _COLUMNS + 1).astype(int)
    middle, half = _WAVE_TOP + _WAVE_HEIGHT / 2, _WAVE_HEIGHT / 2
    upper, lower = [], []
    for column in range(_COLUMNS):
        part = waveform[edges[column] : max(edges[column + 1], edges[column] + 1)]
        place = (column + 0.5) * _SPEECH_WIDTH / _COLUMNS
        upper.append(f"{place:.1f} {middle - float(part.max()) / peak * half:.1f}")
        lower.append(f"{place:.1f} {middle - float(part.min()) / peak * half:.1f}")
    return f"M{'L'.join(upper)}L{'L'.join(reversed(lower))}Z"


def line_chart(curves: Mapping[str, Series], unit: str, top: float | None = None) -> Markup:
    """Draw named curves over training steps.

    Args:
        curves: name to (steps, values). Values that are not finite are left out.
        unit: written behind the numbers of the vertical axis, which starts at 0.
        top: end of the vertical axis; by default a round number above the highest value.
    """
    points = {
        name: [(x, y) for x, y in zip(*curve, strict=True) if math.isfinite(y)] for name, curve in curves.items()
    }
    points = {name: values for name, values in points.items() if values}
    if not points:
        return Markup("")
    last = max(x for values in points.values() for x, _ in values) or 1
    highest = max(y for values in points.values() for _, y in values)
    step = round_step((top or highest or 1.0) / 4)
    top = top or math.ceil(highest / step - 1e-9) * step or 1.0
    width, height = _CHART_WIDTH - _LEFT - _RIGHT, _CHART_HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> str:
        return f"{_LEFT + x / last * width:.1f},{_TOP + (1 - min(max(y / top, 0), 1)) * height:.1f}"

    parts = []
    for line in range(int(round(top / step)) + 1):
        y = _TOP + (1 - line * step / top) * height
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_CHART_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{line * step:g}{unit}</text>'
        )
    step = round_step(last / 4)
    for line in range(int(last / step + 1e-9) + 1):
        x = _LEFT + line * step / last * width
        anchor = "middle" if x < _CHART_WIDTH - _RIGHT - 16 else "end"
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{_CHART_HEIGHT - 10}" text-anchor="{anchor}">{line * step:g}</text>'
        )
    legend = []
    for (name, values), colour in zip(points.items(), COLOURS * len(points), strict=False):
        parts.append(
            f'<polyline class="curve" stroke="{colour}" points="{" ".join(place(x, y) for x, y in values)}"/>'
        )
        if len(values) == 1:
            across, down = place(*values[0]).split(",")
            parts.append(f'<circle cx="{across}" cy="{down}" r="3" fill="{colour}"/>')
        legend.append(f'<span><i style="background:{colour}"></i>{escape(name)}</span>')
    label = escape(", ".join(f"{name}: {values[-1][1]:.3g}{unit} at the end" for name, values in points.items()))
    return Markup(
        f'<div class="legend">{"".join(legend)}</div><svg class="chart" viewBox="0 0 {_CHART_WIDTH} {_CHART_HEIGHT}" '
        f'role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )
