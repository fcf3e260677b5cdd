"""Loss and recall over the steps of a training, as a picture: a PNG, which the Hub shows everywhere."""

import io
import math
from collections.abc import Mapping, Sequence

Series = tuple[Sequence[float], Sequence[float]]

COLOURS = ("#0b6e69", "#b4530a", "#5b4bb3", "#9d2b5e", "#3d6b1f")
_INK, _SOFT, _LINE, _GROUND = "#1c1e21", "#5c6169", "#dfe2e6", "#ffffff"
_SCALE = 2  # pixels for one, so that it is sharp on any screen
_SMOOTH = 2  # drawn larger still and scaled down: smooth lines
_WIDTH, _HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 16, 62, 34


def training_picture(panels: Mapping[str, Mapping[str, Series]], units: Mapping[str, str]) -> bytes | None:
    """Draw panels of curves side by side.

    Args:
        panels: by title, the curves of each panel: name to (steps, values). Values that are not finite are left out;
            panels without any are not drawn.
        units: by title, what is written behind the numbers. A panel in "%" goes up to 100.

    Returns:
        A PNG file; None if there is nothing to draw.
    """
    from PIL import Image, ImageDraw

    shown = {title: kept for title, curves in panels.items() if (kept := _finite(curves))}
    if not shown:
        return None
    factor = _SCALE * _SMOOTH
    image = Image.new("RGB", (_WIDTH * len(shown) * factor, _HEIGHT * factor), _GROUND)
    draw = ImageDraw.Draw(image)
    for place, (title, curves) in enumerate(shown.items()):
        _draw_panel(draw, place * _WIDTH, title, curves, units.get(title, ""))
    image = image.resize((image.width // _SMOOTH, image.height // _SMOOTH), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.quantize(64).save(file, format="PNG", optimize=True)
    return file.getvalue()


def round_step(rough: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten.

    Example:
        >>> [round_step(value) for value in (0.3, 11, 26)]
        [0.5, 20.0, 50.0]
    """
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))


def _finite(curves: Mapping[str, Series]) -> dict[str, list[tuple[float, float]]]:
    points = {
        name: [(x, y) for x, y in zip(*curve, strict=True) if math.isfinite(y)] for name, curve in curves.items()
    }
    return {name: values for name, values in points.items() if values}


def _draw_panel(draw, offset: int, title: str, curves: Mapping[str, list[tuple[float, float]]], unit: str) -> None:
    from PIL import ImageFont

    factor = _SCALE * _SMOOTH
    font, heading = ImageFont.load_default(12 * factor), ImageFont.load_default(15 * factor)
    last = max(x for values in curves.values() for x, _ in values) or 1
    highest = max(y for values in curves.values() for _, y in values)
    top = 100.0 if unit == "%" else highest
    step = round_step((top if top > 0 else 1.0) / 4)
    top = 100.0 if unit == "%" else math.ceil(top / step - 1e-9) * step or 1.0
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            (offset + _LEFT + x / last * width) * factor,
            (_TOP + (1 - min(max(y / top, 0), 1)) * height) * factor,
        )

    draw.text(((offset + _LEFT) * factor, 10 * factor), title, fill=_INK, font=heading)
    for line in range(int(round(top / step)) + 1):
        left, y = at(0, line * step)
        draw.line([(left, y), (at(last, 0)[0], y)], fill=_LINE, width=factor)
        draw.text((left - 6 * factor, y), f"{line * step:g}{unit}", fill=_SOFT, font=font, anchor="rm")
    across = round_step(last / 4)
    for line in range(int(last / across + 1e-9) + 1):
        x, y = at(line * across, 0)
        anchor = "mt" if x < (offset + _WIDTH - _RIGHT - 16) * factor else "rt"
        draw.text((x, y + 6 * factor), f"{line * across:g}", fill=_SOFT, font=font, anchor=anchor)
    draw.text(
        ((offset + _WIDTH - _RIGHT) * factor, (_HEIGHT - 4) * factor), "step", fill=_SOFT, font=font, anchor="rb"
    )
    key = (offset + _LEFT) * factor
    for (name, values), colour in zip(curves.items(), COLOURS * len(curves), strict=False):
        draw.rectangle([key, 39 * factor, key + 9 * factor, 48 * factor], fill=colour)
        draw.text((key + 14 * factor, 44 * factor), name, fill=_SOFT, font=font, anchor="lm")
        key += (14 + 16) * factor + draw.textlength(name, font=font)
        points = [at(x, y) for x, y in values]
        if len(points) == 1:
            (x, y), radius = points[0], 3 * factor
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
        draw.line(points, fill=colour, width=2 * factor, joint="curve")
