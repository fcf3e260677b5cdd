"""The speech that the tiny HuBERT learns from: train-split captions and other word sequences, spoken and aligned.

Captions come in groups of look-alike scenes (the objects exchanged, the colours exchanged, the relation turned), two
captions in two voices for each scene, so that telling the scenes of a group apart needs the order of the words.
espeak-ng's events say where each phoneme and each word begins.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from speechclip_plus.trainer.spoken_scenes.espeak import TRAIN_VOICES, Voice, synthesise_with_events
from speechclip_plus.trainer.spoken_scenes.scenes import BACKGROUNDS, Scene, sample_scenes, scene_words

GROUP_SCENES, CAPTIONS_PER_SCENE = 4, 2
FUNCTION_WORDS = frozenset("a the is there we i see can sits has with to of on it its at in and".split())
COMMON_WORDS = """
about after again air all also always and animal any apple arm around ask away baby back bag ball bank bath bear
because bed been before bell best bird boat body book both box boy bread bring brother build bus but buy cake call
came camera car card cat chair change child city clean clock close cloud coat coffee cold come cook corner country
cup cut dance dark day deep dinner dog door down draw dream drink drive dry ear early earth eat egg eight every eye
face fall family far farm fast father feet field fill find fire first fish five floor flower fly follow food foot
forest form four fox friend from front fruit full game garden gate girl give glass go gold good grow hair half hand
happy hard hat have hear help her here hill him hold home horse hot hour house how hundred ice idea if island job
jump just keep key kind king kitchen know lady lake lamp land last late laugh learn leg letter life light like line
lion listen live long look lost love lunch make man many map market mean meat meet milk mind money month morning most
mother mountain mouse move much music must name near neck need never new news next nine noise north nose not now
number ocean off often old once one only open our out own page paint paper park part party past people person phone
picture piece place plane plant play point pool power pretty pull push put question quick quiet rain read ready rest
rice ride river road rock room rose round run sad safe salt same say school sea second seed seven shadow she ship
shoe shop short show side sing sister sit six skin sleep slow smile snow soft some song soon sound soup south speak
spring stand start station stay step still stone stop storm story street strong study summer sun sure sweet swim
table take talk tall teach team ten test than thank that then thing think this three time today together tomorrow
too town train travel tree true try turn two uncle until up use very voice wait walk want warm wash watch way wear
week well went west what wheel when where which who wide wife wild wind window winter wish woman wood word work
world write year yes yesterday you young your zoo
""".split()


@dataclass
class Utterance:
    """One spoken text with its alignment.

    Attributes:
        samples: int16 (samples,) at 16 kHz.
        text: what was said.
        voice: how it was said.
        group: number of the group of look-alike scenes, -1 for other speech.
        scene: number of the scene within its group, -1 for other speech.
        phoneme_starts: float32 (phonemes,) seconds.
        phonemes: IPA symbols without stress and length, "" for a pause.
        word_starts: float32 (words,) seconds.
        words: the words as espeak-ng spoke them ("of a" may be one word, "of").
    """

    samples: np.ndarray
    text: str
    voice: Voice
    group: int
    scene: int
    phoneme_starts: np.ndarray = field(repr=False)
    phonemes: list[str] = field(repr=False)
    word_starts: np.ndarray = field(repr=False)
    words: list[str] = field(repr=False)


def word_vocabulary() -> list[str]:
    """Every word of the pool, sorted."""
    return sorted({*scene_words(), *COMMON_WORDS})


def look_alikes(scene: Scene, rng: np.random.Generator) -> list[Scene]:
    """The scene and up to three train-split scenes that say almost the same words."""
    a, b = scene.first, scene.second
    other = {"left": "above", "above": "left"}[scene.relation]
    candidates = [
        replace(scene, first=b, second=a),
        replace(scene, first=replace(a, colour=b.colour), second=replace(b, colour=a.colour)),
        replace(scene, first=replace(a, shape=b.shape), second=replace(b, shape=a.shape)),
        replace(scene, first=replace(a, size=b.size), second=replace(b, size=a.size)),
        replace(scene, relation=other),
    ]
    found = {scene.content: scene}
    for index in rng.permutation(len(candidates)):
        candidate = candidates[index]
        differ = (candidate.first.colour, candidate.first.shape) != (candidate.second.colour, candidate.second.shape)
        if differ and candidate.split == "train" and len(found) < GROUP_SCENES:
            found.setdefault(candidate.content, candidate)
    return list(found.values())


def speak(text: str, voice: Voice, group: int = -1, scene: int = -1) -> Utterance:
    """Synthesise one utterance with its alignment."""
    samples, events = synthesise_with_events(text, voice)
    phonemes = [event for event in events if event.kind == "phoneme"]
    words = [event for event in events if event.kind == "word"]
    return Utterance(
        (samples * 32767).astype(np.int16), text, voice, group, scene,
        np.array([event.start for event in phonemes], np.float32),
        [event.text.translate({ord(mark): None for mark in "ˈˌːˑ"}) for event in phonemes],
        np.array([event.start for event in words], np.float32), [event.text for event in words],
    )  # fmt: skip


def random_voice(rng: np.random.Generator, speed: int, names: tuple[str, ...] = TRAIN_VOICES) -> Voice:
    """A voice near a speed, with any pitch that still sounds like a person."""
    speed = int(np.clip(speed + rng.integers(-12, 13), 120, 280))
    return Voice(
        names[int(rng.integers(len(names)))], speed, int(rng.integers(20, 81)), int(rng.integers(20, 81)),
        int(rng.integers(0, 3)) if rng.random() < 0.3 else 0,
    )  # fmt: skip


def _scene_group(number: int, seed: int) -> list[Utterance]:
    rng = np.random.default_rng([seed, 1, number])
    base = _train_scene(rng)
    speed = int(rng.integers(140, 250))
    utterances = []
    for index, scene in enumerate(look_alikes(base, rng)):
        for caption in scene.captions(CAPTIONS_PER_SCENE, rng):
            utterances.append(speak(caption, random_voice(rng, speed), number, index))
    return utterances


def _train_scene(rng: np.random.Generator) -> Scene:
    while True:
        scene = sample_scenes_cached()[int(rng.integers(len(sample_scenes_cached())))]
        if scene.split == "train":
            return replace(scene, background=tuple(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))])


_SCENES: list[Scene] = []


def sample_scenes_cached() -> list[Scene]:
    """Train scenes to start groups from, sampled once per process."""
    if not _SCENES:
        _SCENES.extend(sample_scenes("train", 20_000, seed=1))
    return _SCENES


def _other_speech(number: int, seed: int) -> list[Utterance]:
    """Sequences of scene words and of common words in any order: words without the captions' grammar."""
    rng = np.random.default_rng([seed, 2, number])
    vocabulary = [scene_words(), COMMON_WORDS, scene_words() + COMMON_WORDS][int(rng.integers(3))]
    words = [vocabulary[int(index)] for index in rng.integers(0, len(vocabulary), int(rng.integers(5, 11)))]
    return [speak(" ".join(words), random_voice(rng, int(rng.integers(140, 250))))]


def _make(task: tuple[str, int, int]) -> list[Utterance]:
    kind, number, seed = task
    return _scene_group(number, seed) if kind == "group" else _other_speech(number, seed)


def build_pool(folder: Path, groups: int, others: int, seed: int, workers: int = 2, shard: int = 100) -> None:
    """Synthesise the pool into `folder`, as pickled shards; shards that exist are kept, so that it can be resumed.

    Args:
        folder: where to write.
        groups: number of groups of four look-alike scenes with two captions each.
        others: number of utterances that are no captions.
        seed: seed of everything.
        workers: processes.
        shard: groups per shard.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = -(-groups // shard)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for index in range(shards):
            path = folder / f"{index:04d}.pkl"
            if path.exists():
                continue
            tasks = [("group", n, seed) for n in range(index * shard, min(groups, (index + 1) * shard))]
            tasks += [("other", n, seed) for n in range(index * others // shards, (index + 1) * others // shards)]
            made = [utterance for part in pool.imap(_make, tasks, chunksize=8) for utterance in part]
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(pickle.dumps(made, protocol=5))
            os.replace(temporary, path)
            print(f"speech pool: shard {index + 1} of {shards}, {len(made)} utterances", flush=True)


def load_shard(path: Path) -> list[Utterance]:
    """Read back one shard that `build_pool` wrote."""
    return pickle.loads(path.read_bytes())
