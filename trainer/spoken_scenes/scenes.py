"""Scenes of the `spoken_scenes` data set: what can be in an image, how it is drawn, what is said about it.

A scene is two objects (size, colour, shape), a spatial relation and a background. What decides the split is the
*content*, objects and relation without the background, so that a test scene cannot occur in training whatever seed
or number of scenes is asked for. Images are drawn with jitter in place, size, shade and angle.
"""

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..data.schema import SPLITS, check_split
from .drawing import COLOURS, IMAGE_SIZE, SHAPES, SceneObject, draw_scene

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
class Scene:
    """Two objects, how they lie, what is behind them, and the seed of the drawing's jitter.

    Attributes:
        first: the left or the upper object.
        second: the right or the lower object.
        relation: where `first` lies as seen from `second`, "left" or "above".
        background: a key of `BACKGROUNDS`.
        image_id: a number that tells this image from all others of the data set.
        drawing_seed: seed of the jitter.
    """

    first: SceneObject
    second: SceneObject
    relation: str
    background: str
    image_id: int
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
        """Say what is in the image in 8 to 14 lower-case words.

        Both objects with all their attributes and the relation are always named, the background in some captions.
        """
        while True:
            words = self._phrase(rng)
            if MIN_WORDS <= words.count(" ") + 1 <= MAX_WORDS:
                return words

    def captions(self, count: int, rng: np.random.Generator) -> list[str]:
        """Return `count` different captions."""
        found: dict[str, None] = {}
        while len(found) < count:
            found[self.caption(rng)] = None
        return list(found)

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
    """Sample scenes of one split, the same ones for the same arguments on every machine.

    Args:
        split: "train", "validation" or "test".
        count: number of scenes. Contents do not repeat within validation and test; in training they repeat, with
            another image, once all of them (about 26,000) were used.
        seed: seed of the choice of contents, backgrounds and jitter.

    Returns:
        The scenes in random order.

    Raises:
        ValueError: unknown split, negative count, or more validation or test scenes than there are.
    """
    check_split(split)
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
            image_id = number + repetition * _number_of_contents()
            scenes.append(Scene(first, second, relation, background, image_id, int(rng.integers(2**31))))
    return scenes


@functools.lru_cache(maxsize=len(SPLITS))
def split_contents(split: str) -> tuple[tuple[int, SceneObject, SceneObject, str], ...]:
    """Every content of a split as (running number over all contents, first, second, relation)."""
    check_split(split)
    return tuple((n, *c) for n, c in enumerate(_all_contents()) if split_of(_content(*c)) == split)


@functools.lru_cache(maxsize=1)
def _number_of_contents() -> int:
    return sum(1 for _ in _all_contents())


def _all_contents() -> Iterator[tuple[SceneObject, SceneObject, str]]:
    """Two objects that differ in colour or shape, in each of two relations (the other two are the same scenes)."""
    objects = [SceneObject(size, colour, shape) for size in SIZES for colour in COLOURS for shape in SHAPES]
    for relation in ("left", "above"):
        for first in objects:
            for second in objects:
                if (first.colour, first.shape) != (second.colour, second.shape):
                    yield first, second, relation


def _content(first: SceneObject, second: SceneObject, relation: str) -> str:
    return "|".join([*(f"{o.size} {o.colour} {o.shape}" for o in (first, second)), relation])
