"""Drawing of the scenes of `spoken_scenes`: backgrounds, shapes, and jitter in place, size, shade and angle."""

import functools
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

IMAGE_SIZE = 64  # pixels
COLOURS = {
    "red": (219, 36, 41),
    "orange": (250, 138, 18),
    "yellow": (252, 222, 40),
    "green": (40, 165, 62),
    "blue": (36, 84, 220),
    "purple": (130, 48, 175),
    "pink": (252, 138, 192),
    "brown": (120, 72, 34),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "moon", "ring")
RADII = {"big": (12.4, 14.0), "small": (6.9, 8.0)}  # pixels at 64 x 64
_OVERSAMPLING = 4


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    Attributes:
        size: a key of `SIZES`.
        colour: a key of `COLOURS`.
        shape: one of `SHAPES`.
    """

    size: str
    colour: str
    shape: str


def draw_scene(
    objects: tuple[SceneObject, SceneObject],
    relation: str,
    background: str,
    rng: np.random.Generator,
    size: int = IMAGE_SIZE,
) -> np.ndarray:
    """Draw two objects on a background.

    Args:
        objects: the left and the right one, or the upper and the lower one.
        relation: "left" or "above", where the first lies as seen from the second.
        background: what is behind them.
        rng: source of the jitter.
        size: edge of the image in pixels.

    Returns:
        uint8 array (size, size, 3).
    """
    unit = size / IMAGE_SIZE
    image = draw_background(background, rng, size)
    radii = [rng.uniform(*RADII[o.size]) for o in objects]
    # Along the relation's axis the free space is shared out before, between and behind the two objects.
    margin, gap = 1.5, 2.0
    free = IMAGE_SIZE - 2 * sum(radii) - 2 * margin - gap
    shares = rng.dirichlet((1.0, 1.0, 1.0)) * free
    along = [margin + shares[0] + radii[0], IMAGE_SIZE - margin - shares[2] - radii[1]]
    # Across it both may lie off the middle, but not so far apart that "left of" could be taken for "above".
    middle, slant = rng.uniform(-9, 9), rng.uniform(-0.25, 0.25) * (along[1] - along[0])
    for scene_object, radius, place, shift in zip(
        objects, radii, along, (middle - slant, middle + slant), strict=True
    ):
        sway = IMAGE_SIZE / 2 - radius - margin
        across = IMAGE_SIZE / 2 + min(max(shift, -sway), sway)
        centre = (place, across) if relation == "left" else (across, place)
        _paint(image, scene_object, (centre[0] * unit, centre[1] * unit), radius * unit, rng)
    return np.clip(image, 0, 255).astype(np.uint8)


def draw_background(background: str, rng: np.random.Generator, size: int = IMAGE_SIZE) -> np.ndarray:
    """Draw a background with jitter: float32 (size, size, 3) of 0 to 255."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    phase = rng.uniform(0, 2 * math.pi, 4)
    if background == "white":
        return _blend(0.1 * (x * math.cos(phase[0]) + y * math.sin(phase[0])), (252, 252, 250), (225, 226, 230))
    if background == "grey":
        slope = 0.5 + 0.5 * ((x - 0.5) * math.cos(phase[0]) + (y - 0.5) * math.sin(phase[0])) * 1.4
        return _blend(slope, (112, 112, 116), (176, 176, 180))
    if background == "sand":
        grain = 0.5 + 0.13 * rng.standard_normal((size, size), dtype=np.float32)
        grain += 0.18 * np.sin(16 * y + 3 * np.sin(4 * x + phase[0]) + phase[1])
        return _blend(grain, (226, 200, 150), (246, 228, 186))
    if background == "grass":
        blades = rng.standard_normal((size, size), dtype=np.float32)
        blades = 0.5 + 0.25 * (blades + np.roll(blades, 1, 0) + np.roll(blades, 2, 0)) / 1.7
        return _blend(blades, (96, 128, 62), (164, 190, 112))
    if background == "water":
        waves = np.sin(42 * y + 2.2 * np.sin(9 * x + phase[0]) + 1.3 * np.sin(5 * x + 3 * y + phase[1]) + phase[2])
        return _blend(0.5 + 0.5 * np.clip(waves, -0.4, 1), (70, 168, 182), (146, 218, 222))
    if background == "sky":
        clouds = sum(np.exp(-(((x - rng.random()) / 0.2) ** 2 + ((y - rng.random()) / 0.07) ** 2)) for _ in range(5))
        return _blend(np.clip(0.15 + 0.35 * y + 0.9 * clouds, 0, 1), (122, 186, 245), (250, 252, 255))
    if background == "night":
        image = _blend(y, (10, 12, 34), (34, 36, 78))
        rows, columns = rng.integers(0, size, (2, 26 * size * size // IMAGE_SIZE**2))
        image[rows, columns] = rng.uniform(140, 250, (len(rows), 1))
        return image
    if background == "wall":
        row = np.floor(y * 8 + phase[0] / 6.3)
        mortar = (np.mod(y * 8 + phase[0] / 6.3, 1) < 0.16) | (np.mod(x * 4 + 0.5 * row + phase[1], 1) < 0.08)
        tint = 0.5 + 0.35 * np.sin(12.9 * row + 7.1 * np.floor(x * 4 + 0.5 * row + phase[1]) + phase[2])
        return np.where(
            mortar[..., None], np.asarray((222, 212, 204), np.float32), _blend(tint, (176, 120, 104), (196, 146, 128))
        )
    raise ValueError(f"There is no background {background!r}: choose a key of scenes.BACKGROUNDS.")


def _blend(weight: np.ndarray, low: tuple[int, int, int], high: tuple[int, int, int]) -> np.ndarray:
    weight = weight[..., None].astype(np.float32)
    return np.asarray(low, np.float32) * (1 - weight) + np.asarray(high, np.float32) * weight


def _paint(
    image: np.ndarray,
    scene_object: SceneObject,
    centre: tuple[float, float],
    radius: float,
    rng: np.random.Generator,
) -> None:
    """Paint one object into `image` (H, W, 3) in place, anti-aliased, with a dark outline and some shading."""
    reach = math.ceil(radius) + 2
    left, top = math.floor(centre[0]) - reach, math.floor(centre[1]) - reach
    side = 2 * reach + 1
    offset = ((centre[0] - left) * _OVERSAMPLING, (centre[1] - top) * _OVERSAMPLING)
    outlines = shape_outlines(scene_object.shape, rng.uniform(-0.2, 0.2))
    masks = []
    line = radius * 0.13 * _OVERSAMPLING
    for width in (line, 0.0):
        mask = Image.new("L", (side * _OVERSAMPLING, side * _OVERSAMPLING))
        pen = ImageDraw.Draw(mask)
        for outline, ink in outlines:
            scaled = outline * (radius - line / 2 / _OVERSAMPLING) * _OVERSAMPLING + offset
            points = [(float(px), float(py)) for px, py in scaled]
            pen.polygon(points, fill=ink)
            if width or not ink:
                # A line around a hole keeps the hole's edge dark in the outline's mask and clear in the fill's.
                pen.line(points + points[:2], fill=255 if width else 0, width=max(1, round(line)), joint="curve")
        masks.append(np.asarray(mask.reduce(_OVERSAMPLING), dtype=np.float32)[..., None] / 255)
    tint = np.asarray(COLOURS[scene_object.colour], np.float32) * rng.uniform(0.9, 1.05) + rng.uniform(-9, 9, 3)
    shading = np.linspace(1.1, 0.88, side, dtype=np.float32)[:, None, None]
    rows, columns = slice(max(top, 0), top + side), slice(max(left, 0), left + side)
    patch = image[rows, columns]
    cut = (slice(max(-top, 0), max(-top, 0) + patch.shape[0]), slice(max(-left, 0), max(-left, 0) + patch.shape[1]))
    outer, inner = masks[0][cut], masks[1][cut]
    patch += outer * (np.asarray((30, 26, 34), np.float32) - patch)
    patch += inner * (np.clip(tint * shading, 0, 255)[cut[0]] - patch)


def shape_outlines(shape: str, angle: float) -> list[tuple[np.ndarray, int]]:
    """Polygons (points, 2) in units of the radius, with 255 for a filled one and 0 for a hole, turned by `angle`."""
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return [(np.asarray(outline, dtype=np.float64) @ turn, ink) for outline, ink in _unturned(shape)]


@functools.lru_cache(maxsize=len(SHAPES))
def _unturned(shape: str) -> list[tuple[list[tuple[float, float]], int]]:
    def arc(radius: float, start: float, stop: float, centre: tuple[float, float] = (0.0, 0.0), points: int = 40):
        angles = np.linspace(math.radians(start), math.radians(stop), points)
        return [(centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a)) for a in angles]

    if shape == "circle":
        return [(arc(0.95, 0, 351), 255)]
    if shape == "ring":
        return [(arc(1.0, 0, 351), 255), (arc(0.5, 0, 351), 0)]
    if shape == "square":
        return [([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)], 255)]
    if shape == "triangle":
        return [([(0.0, -1.0), (0.98, 0.8), (-0.98, 0.8)], 255)]
    if shape == "star":
        radii = (1.08, 0.46) * 5
        angles = [math.radians(-90 + 36 * k) for k in range(10)]
        return [([(r * math.cos(a), r * math.sin(a) + 0.05) for r, a in zip(radii, angles, strict=True)], 255)]
    if shape == "cross":
        w, e = 0.31, 0.95
        corners = [(-w, -e), (w, -e), (w, -w), (e, -w), (e, w), (w, w), (w, e), (-w, e), (-w, w), (-e, w), (-e, -w)]
        return [([*corners, (-w, -w)], 255)]
    if shape == "heart":
        t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
        x = 16 * np.sin(t) ** 3
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
        return [(list(zip(x / 16.5, (y - 2) / 15.5, strict=True)), 255)]
    if shape == "moon":
        # Two circles of equal size that cross: the outer arc, then back along the inner one.
        outer, inner = arc(1.0, 62, 298), arc(0.84, 258, 102, (0.62, 0.0))
        return [([(x + 0.22, y) for x, y in outer + inner], 255)]
    raise ValueError(f"There is no shape {shape!r}: choose one of {', '.join(SHAPES)}.")
