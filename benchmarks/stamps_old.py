"""``stamps``: Tux Paint's stamps as Debian installs them, pictures with descriptions spoken in several languages."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..spoken_scenes.dataset import FEATURES, VOICES, flac, random_voice
from ..spoken_scenes.espeak import Voice, synthesise
from ..spoken_scenes.scenes import check_split
from .schema import AUDIO, Findings, NoSuchSplitError, given_folder, make_dataset, stable_id

STAMPS = Path("/usr/share/tuxpaint/stamps")
VERSION = 1
"""Raised whenever the synthesised speech changes, so that an older cached copy is not taken for a new one."""

DOWNLOAD = (
    "Debian's package tuxpaint-stamps-default (`apt-get install tuxpaint-stamps-default`, or its .deb from "
    "packages.debian.org unpacked anywhere), and data_dir is its folder usr/share/tuxpaint/stamps."
)
_DESCRIPTION = re.compile(r"(?P<stem>.+)_desc(_(?P<language>[a-z]{2,3}(_[A-Z]{2})?))?\.(ogg|wav)")
_TRANSLATION = re.compile(r"(?P<language>[A-Za-z_@]+)\.utf8=(?P<text>.*)")


@dataclass
class Stamp:
    """A picture, its captions and its recorded descriptions.

    Attributes:
        name: path from the stamps' folder, without ending.
        image: the picture.
        captions: text by language; "en" for the first line.
        recordings: recording by language; "en" for the one that names no language.
    """

    name: str
    image: Path
    captions: dict[str, str] = field(default_factory=dict)
    recordings: dict[str, Path] = field(default_factory=dict)

    @property
    def split(self) -> str:
        """A tenth of the pictures are for validation and a tenth for testing, whatever the language and the voice.

        Pictures of the same thing have the same caption, and often the very same recordings: it decides, not the name.
        """
        said = self.captions.get("en", self.name).casefold().strip(" .!")
        return _split(said)


def load_stamps(
    split: str,
    data_dir: str | Path | None,
    findings: Findings,
    *,
    languages: str | Sequence[str] | None = None,
    voices: str = "recorded",
    held_out: str = "pictures",
    voices_per_picture: int = 4,
    seed: int = 0,
    cache_dir: str | None = None,
) -> datasets.Dataset:
    """Read one split of the stamps, or let espeak-ng speak their English captions.

    Only pixel pictures are taken; sound effects are left out.

    Args:
        split: "train", "validation" or "test".
        data_dir: the stamps' folder; by default where Debian installs it.
        findings: what is left out is noted here.
        languages: languages to take, such as ["fr", "pt_BR"] or "fr,pt_BR" ("en": the description that names none);
            all of them by default. For recorded voices only.
        voices: "recorded": the descriptions that come with the pictures; the language is the `speaker`. "synthetic":
            the English captions in many voices, of which validation and test have their own.
        held_out: what validation and test have for themselves. "pictures": theirs are in no other split, and neither
            is what is said of them. "recordings": every picture is in every split, described by other recordings: in
            other languages, or in other synthetic voices.
        voices_per_picture: different voices that speak each caption. For synthetic voices only.
        seed: seed of the synthetic voices.
        cache_dir: where `datasets` keeps the synthetic speech.

    Raises:
        ValueError: unknown split, voices, held_out or language, or an option that does not go with the voices.
        FileNotFoundError: the stamps are not there.
        SpeechSynthesisError: if espeak-ng is needed and not installed.
    """
    check_split(split)
    if voices not in ("recorded", "synthetic"):
        raise ValueError(f"voices={voices!r}: choose recorded or synthetic.")
    if held_out not in ("pictures", "recordings"):
        raise ValueError(f"held_out={held_out!r}: choose pictures or recordings.")
    if voices == "synthetic" and languages is not None:
        raise ValueError("Synthetic voices speak the English captions: leave languages out.")
    if not 1 <= voices_per_picture <= min(map(len, VOICES.values())):
        raise ValueError(
            f"voices_per_picture={voices_per_picture}: expected 1 to {min(map(len, VOICES.values()))}, the number of "
            "voices of the smallest split."
        )
    if data_dir is None and not STAMPS.is_dir():
        raise FileNotFoundError(f"There is no folder {STAMPS}. Needed is {DOWNLOAD}")
    root = given_folder("stamps", data_dir or STAMPS, DOWNLOAD)
    everything = read_stamps(root, findings)
    stamps = [stamp for stamp in everything if held_out == "recordings" or stamp.split == split]
    if voices == "synthetic":
        return _speak(stamps, split, voices_per_picture, seed, cache_dir)
    chosen = _chosen(languages, everything)
    rows = list(_recorded_rows(stamps, chosen, split if held_out == "recordings" else None))
    if not rows:
        raise NoSuchSplitError(f"No picture of the split {split!r} is described in {', '.join(chosen)}.")
    return make_dataset(rows, split)


def read_stamps(root: Path, findings: Findings) -> list[Stamp]:
    """Return all stamps that have a pixel picture, in order of their names.

    Raises:
        FileNotFoundError: there is none.
    """
    files = sorted(path for path in root.rglob("*") if path.is_file())
    stamps = {_stem(root, path): Stamp(_stem(root, path), path) for path in files if path.suffix == ".png"}
    if not stamps:
        raise FileNotFoundError(f"{root} holds no pictures (.png). Needed is {DOWNLOAD}")
    for path in files:
        name = path.relative_to(root).as_posix()
        if path.suffix == ".svg":
            if _stem(root, path) not in stamps:
                findings.note("pictures that are drawings (.svg) only, left out", name)
        elif path.suffix == ".txt":
            if _stem(root, path) in stamps:
                stamps[_stem(root, path)].captions = _read_captions(path)
        elif path.suffix in (".ogg", ".wav"):
            match = _DESCRIPTION.fullmatch(name)
            if match is None:
                kind = "stray recordings" if "_desc" in path.name else "sound effects, left out"
                findings.note(kind, name)
            elif match["stem"] not in stamps:
                findings.note("descriptions of pictures left out or missing", name)
            else:
                stamps[match["stem"]].recordings[match["language"] or "en"] = path
    return list(stamps.values())


def _stem(root: Path, path: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def _read_captions(file: Path) -> dict[str, str]:
    first, *rest = file.read_text(encoding="utf-8-sig").splitlines() or [""]
    captions = {"en": first.strip()} if first.strip() else {}
    for line in rest:
        if (match := _TRANSLATION.fullmatch(line.strip())) and match["text"].strip():
            captions[match["language"]] = match["text"].strip()
    return captions


def _chosen(languages: str | Sequence[str] | None, stamps: list[Stamp]) -> list[str]:
    there = sorted({language for stamp in stamps for language in stamp.recordings})
    if languages is None:
        return there
    wanted = languages.split(",") if isinstance(languages, str) else list(languages)
    if not wanted or (unknown := [language for language in wanted if language not in there]):
        raise ValueError(
            f"There are no descriptions in {', '.join(unknown) if wanted else 'no language'}; there are "
            f"{', '.join(there)}."
        )
    return wanted


def _recorded_rows(stamps: list[Stamp], languages: list[str], recordings_of: str | None) -> Iterator[dict[str, Any]]:
    for stamp in stamps:
        for language in languages:
            if (file := stamp.recordings.get(language)) and recordings_of in (None, _recording_split(file)):
                yield {
                    "audio": str(file),
                    "image": str(stamp.image),
                    "image_id": stable_id(stamp.name),
                    "text": stamp.captions.get(language) or stamp.captions.get("en", ""),
                    "caption_id": f"{stamp.name}-{language}",
                    "speaker": language,
                }


def _recording_split(file: Path) -> str:
    # By what is in the file: pictures of the same thing come with copies of one recording.
    return _split(hashlib.sha256(file.read_bytes()).hexdigest())


def _split(key: str) -> str:
    return {8: "validation", 9: "test"}.get(stable_id(key) % 10, "train")


def _speak(
    stamps: list[Stamp], split: str, voices_per_picture: int, seed: int, cache_dir: str | None
) -> datasets.Dataset:
    captions = [(stamp.name, str(stamp.image), stamp.captions["en"]) for stamp in stamps if "en" in stamp.captions]
    synthesise("test", Voice(VOICES[split][0]))  # if espeak-ng is missing, say so here
    made = datasets.Dataset.from_generator(
        synthetic_rows,
        features=FEATURES,
        cache_dir=cache_dir,
        gen_kwargs={
            "captions": captions,
            "split": split,
            "voices_per_picture": voices_per_picture,
            "seed": seed,
            "version": VERSION,
        },
        split=datasets.NamedSplit(split),
    )
    return made.cast_column("audio", AUDIO)


def synthetic_rows(
    captions: list[tuple[str, str, str]], split: str, voices_per_picture: int, seed: int, version: int
) -> Iterator[dict[str, Any]]:
    """Yield one row per caption and voice. ``version`` is there for the cache to tell generators apart."""
    for name, image, text in captions:
        rng = np.random.default_rng([seed, stable_id(name)])
        for index in rng.choice(len(VOICES[split]), voices_per_picture, replace=False):
            voice = random_voice(VOICES[split][int(index)], rng)
            caption_id = f"{name}-{voice.name}"
            yield {
                "audio": {"bytes": flac(synthesise(text, voice)), "path": f"{caption_id.replace('/', '-')}.flac"},
                "image": {"bytes": None, "path": image},
                "image_id": stable_id(name),
                "text": text,
                "caption_id": caption_id,
                "speaker": voice.name,
            }
