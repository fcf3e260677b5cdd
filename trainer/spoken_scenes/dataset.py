"""`spoken_scenes`: drawn scenes and their captions, spoken by espeak-ng, made on the spot.

Validation and test hold scenes and voices that training never has. Everything follows from the arguments and
`VERSION`, on every machine with the same espeak-ng.
"""

import io
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np

from ..data.schema import AUDIO, FEATURES, SPLITS, WORDS, check_split
from .espeak import (
    SAMPLING_RATE,
    TEST_VOICES,
    TRAIN_VOICES,
    VALIDATION_VOICES,
    Voice,
    synthesise,
    synthesise_with_events,
    word_times,
)
from .scenes import Scene, sample_scenes

VERSION = 2
"""Raised whenever the generator's output changes, so that an older cached copy is not taken for a new one."""

VOICES = {"train": TRAIN_VOICES, "validation": VALIDATION_VOICES, "test": TEST_VOICES}
DEFAULT_SIZES = {"train": (4000, 2), "validation": (500, 1), "test": (500, 1)}
"""Scenes, and captions per scene, of each split unless asked otherwise."""

# Audio can be attached only afterwards: creating it needs torchcodec, which this package does not.
_FILE = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
_FEATURES = datasets.Features({**FEATURES, "audio": _FILE, "words": WORDS})
_LIVELINESS = ((130, 211), (30, 71), (25, 76), (0, 3))  # from and below which speed, pitch and so on are drawn
_CHUNK = 125  # scenes that one process makes at a time; fixed, so that the cache does not depend on their number


def build_spoken_scenes(
    split: str = "train",
    num_scenes: int | None = None,
    captions_per_scene: int | None = None,
    seed: int = 0,
    cache_dir: str | None = None,
    num_proc: int = 2,
) -> datasets.Dataset:
    """Make one split, or load it from the cache if the same one was made before.

    Args:
        split: "train", "validation" or "test".
        num_scenes: images; by default 4,000 for training, 500 for the others.
        captions_per_scene: different captions of each image, each in a voice of its own; by default 2 for training,
            1 for the others.
        seed: seed of scenes, captions and voices.
        cache_dir: where to keep it; by default where `datasets` keeps everything.
        num_proc: processes that draw and speak.

    Returns:
        A data set with one row per caption: `audio` (FLAC bytes, 16 kHz, 16 bit), `image` (PNG bytes, 64 x 64),
        `image_id`, `text`, `caption_id`, `speaker` (the voice's name), `words` (the spoken words with their times).
    """
    check_split(split)
    num_scenes = DEFAULT_SIZES[split][0] if num_scenes is None else num_scenes
    captions_per_scene = DEFAULT_SIZES[split][1] if captions_per_scene is None else captions_per_scene
    for name, number, most in (("num_scenes", num_scenes, None), ("captions_per_scene", captions_per_scene, 50)):
        if number < 1 or (most is not None and number > most):
            raise ValueError(f"{name}={number}: at least 1{f' and at most {most}' if most else ''} is needed.")
    sample_scenes(split, num_scenes, seed)  # more scenes than there are: say so here, not from a worker process
    synthesise("test", Voice(VOICES[split][0]))  # likewise if espeak-ng is missing
    chunks = [(start, min(start + _CHUNK, num_scenes)) for start in range(0, num_scenes, _CHUNK)]
    sizes = {"num_scenes": num_scenes, "captions_per_scene": captions_per_scene, "seed": seed}
    made = datasets.Dataset.from_generator(
        generate_rows,
        features=_FEATURES,
        cache_dir=cache_dir,
        gen_kwargs={"chunks": chunks, "split": split, "version": VERSION, **sizes},
        num_proc=min(num_proc, len(chunks)),
        split=datasets.NamedSplit(split),
    )
    return made.cast_column("audio", AUDIO)


def generate_rows(
    chunks: list[tuple[int, int]], split: str, num_scenes: int, captions_per_scene: int, seed: int, version: int
) -> Iterator[dict[str, Any]]:
    """Yield the rows of some chunks of scenes. `version` is there for the cache to tell generators apart."""
    scenes = sample_scenes(split, num_scenes, seed)
    for start, stop in chunks:
        for scene in scenes[start:stop]:
            yield from scene_rows(scene, split, captions_per_scene, seed)


def scene_rows(scene: Scene, split: str, captions_per_scene: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield one row per caption of a scene, each in another voice of the split."""
    # The scene's own generator: its rows are the same in a small and in a large data set.
    rng = np.random.default_rng([seed, SPLITS.index(split), scene.image_id])
    image = {"bytes": _png(scene), "path": f"{split}-{scene.image_id}.png"}
    names = rng.choice(len(VOICES[split]), captions_per_scene, replace=False)
    for number, text in enumerate(scene.captions(captions_per_scene, rng)):
        voice = random_voice(VOICES[split][int(names[number])], rng)
        caption_id = f"{split}-{scene.image_id}-{number}"
        samples, events = synthesise_with_events(text, voice)
        yield {
            "audio": {"bytes": flac(samples), "path": f"{caption_id}.flac"},
            "image": image,
            "image_id": scene.image_id,
            "text": text,
            "caption_id": caption_id,
            "speaker": voice.name,
            "words": word_times(events, len(samples) / SAMPLING_RATE),
        }


def random_voice(name: str, rng: np.random.Generator) -> Voice:
    """Let a voice speak at a pace, height and liveliness of the moment."""
    speed, pitch, pitch_range, word_gap = (int(rng.integers(*ends)) for ends in _LIVELINESS)
    return Voice(name, speed, pitch, pitch_range, word_gap)


def flac(samples: np.ndarray) -> bytes:
    """Pack float samples at 16 kHz into a 16-bit FLAC file."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def _png(scene: Scene) -> bytes:
    file = io.BytesIO()
    scene.draw().save(file, format="PNG")
    return file.getvalue()
