"""Scenes of the `spoken_scenes` data set: what can be in an image, what is said about it, and its drawing.

A scene is two objects (size, colour, shape), a spatial relation and a background. What decides the split is the
*content*, objects and relation without the background, so that a test scene cannot occur in training whatever seed
or number of scenes is asked for. Images are drawn with jitter in place, size, shade and angle.
"""

import functools
import hashlib
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ..data.schema import SPLITS, check_split

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
SIZES = {"big": ("big", "large"), "small": ("small", "little")}
BACKGROUNDS = {
    "white": ("on white", "on a white background"),
    "grey": ("on grey", "on a grey background"),
    "sand": ("on sand", "on the sand"),
    "grass": ("on grass", "on the grass"),
    "water": ("on water", "on the water"),
    "sky": ("in the sky",),
    "night": ("at night",),
    "wall": ("on a wall", "on the wall"),
}
RELATIONS = {
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}
INVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}
OF_IT = {"left": "on its left", "right": "on its right", "above": "above it", "below": "below it"}
TEMPLATES = (
    "{a} {relation} {b}",
    "{a} is {relation} {b}",
    "{a} sits {relation} {b}",
    "there is {a} {relation} {b}",
    "we see {a} {relation} {b}",
    "i can see {a} {relation} {b}",
    "{b} with {a} {of_it}",
    "{b} has {a} {of_it}",
)
MIN_WORDS, MAX_WORDS = 8, 14


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene: a key of `SIZES`, a key of `COLOURS` and one of `SHAPES`."""

    size: str
    colour: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """Two objects, how they lie, what is behind them, and the seed of the drawing's jitter."""

    first: SceneObject  # the left or the upper one
    second: SceneObject  # the right or the lower one
    relation: str  # where `first` lies as seen from `second`, "left" or "above"
    background: str  # a key of `BACKGROUNDS`
    image_id: int  # tells this image from all others of the data set
    drawing_seed: int

    @property
    def content(self) -> str:
        """What decides the split, e.g. `"big red star|small blue ring|left"`."""
        return _content(self.first, self.second, self.relation)

    @property
    def split(self) -> str:
        """The split this scene belongs to."""
        return split_of(self.content)

    def draw(self, size: int = IMAGE_SIZE) -> Image.Image:
        """Draw the scene: an RGB image of `size` x `size` pixels, the same one at each call."""
        rng = np.random.default_rng(self.drawing_seed)
        return Image.fromarray(draw_scene((self.first, self.second), self.relation, self.background, rng, size))

    def caption(self, rng: np.random.Generator) -> str:
        """Say in 8 to 14 lower-case words what is in the image: objects, relation, and sometimes the background."""
        while True:
            words = self._phrase(rng)
            if MIN_WORDS <= words.count(" ") + 1 <= MAX_WORDS:
                return words

    def captions(self, count: int, rng: np.random.Generator) -> list[str]:
        """Return `count` different captions."""
        found: list[str] = []
        while len(found) < count:
            if (caption := self.caption(rng)) not in found:
                found.append(caption)
        return found

    def _phrase(self, rng: np.random.Generator) -> str:
        def choose(options: tuple[str, ...]) -> str:
            return options[int(rng.integers(len(options)))]

        a, b, relation = self.first, self.second, self.relation
        if rng.random() < 0.5:
            a, b, relation = b, a, INVERSE[relation]
        article = choose(("a", "a", "the"))
        noun_phrases = [f"{article} {choose(SIZES[o.size])} {o.colour} {o.shape}" for o in (a, b)]
        sentence = choose(TEMPLATES).format(
            a=noun_phrases[0], b=noun_phrases[1], relation=choose(RELATIONS[relation]), of_it=OF_IT[relation]
        )
        place = rng.random()
        if place < 0.5:
            return f"{sentence} {choose(BACKGROUNDS[self.background])}"
        if place < 0.65:
            return f"{choose(BACKGROUNDS[self.background])} {sentence}"
        return sentence


def scene_words() -> list[str]:
    """Every word that a caption can contain, sorted."""
    texts = [*TEMPLATES, *COLOURS, *SHAPES, *OF_IT.values(), "a the"]
    for table in (SIZES, RELATIONS, BACKGROUNDS):
        for phrases in table.values():
            texts.extend(phrases)
    return sorted({word for text in texts for word in text.split() if not word.startswith("{")})


def split_of(content: str) -> str:
    """The split a scene's content belongs to: 80 % train, 10 % validation, 10 % test, by a hash of the content."""
    bucket = int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") % 10
    return SPLITS[1] if bucket == 8 else SPLITS[2] if bucket == 9 else SPLITS[0]


def sample_scenes(split: str, count: int, seed: int = 0) -> list[Scene]:
    """Sample scenes of one split in random order, the same ones for the same arguments on every machine.

    Contents do not repeat within validation and test, so that there are only so many; in training they repeat, with
    another image, once all of them (about 26,000) were used.
    """
    contents = split_contents(split)
    if count < 0 or (split != "train" and count > len(contents)):
        raise ValueError(f"count={count} {split} scenes were asked for: choose 0 to {len(contents)}.")
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    backgrounds = tuple(BACKGROUNDS)
    scenes: list[Scene] = []
    for repetition in range(-(-count // len(contents))):
        for index in rng.permutation(len(contents))[: count - len(scenes)]:
            number, first, second, relation = contents[index]
            background = backgrounds[int(rng.integers(len(backgrounds)))]
            image_id = number + repetition * len(_all_contents())
            scenes.append(Scene(first, second, relation, background, image_id, int(rng.integers(2**31))))
    return scenes


@functools.cache
def split_contents(split: str) -> tuple[tuple[int, SceneObject, SceneObject, str], ...]:
    """Every content of a split as (running number over all contents, first, second, relation)."""
    check_split(split)
    return tuple((n, *c) for n, c in enumerate(_all_contents()) if split_of(_content(*c)) == split)


@functools.cache
def _all_contents() -> list[tuple[SceneObject, SceneObject, str]]:
    """Two objects that differ in colour or shape, in each of two relations (the other two are the same scenes)."""
    objects = [SceneObject(size, colour, shape) for size in SIZES for colour in COLOURS for shape in SHAPES]
    return [
        (first, second, relation)
        for relation in ("left", "above")
        for first in objects
        for second in objects
        if (first.colour, first.shape) != (second.colour, second.shape)
    ]


def _content(first: SceneObject, second: SceneObject, relation: str) -> str:
    return "|".join([*(f"{o.size} {o.colour} {o.shape}" for o in (first, second)), relation])


def draw_scene(
    objects: tuple[SceneObject, SceneObject],
    relation: str,
    background: str,
    rng: np.random.Generator,
    size: int = IMAGE_SIZE,
) -> np.ndarray:
    """Draw the objects of a scene on a background: uint8 (size, size, 3)."""
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
    raise ValueError(f"There is no background {background!r}: choose a key of BACKGROUNDS.")


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
