"""Tux Paint's stamps as a folder data set: images with descriptions spoken in several languages.

`python benchmarks/stamps.py OUT` reads what Debian's package tuxpaint-stamps-default installs and writes a folder with
a `metadata.csv`, images and recordings, which loads like any folder of one's own: `load_speech_image_dataset("OUT")`,
`speechclip-plus data check OUT`. `--voices synthetic` lets espeak-ng speak the English captions instead.

The rows of an image are in one split, chosen by a hash of its English caption: images of the same thing have the same
caption, and often the very same recordings. With `--held-out recordings` every image is in every split, and
validation and test have other recordings of it, in other languages or other synthetic voices.
"""

import argparse
import csv
import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from speechclip_plus.atomic_files import check_new_folder, finished_folder
from speechclip_plus.trainer.data.schema import SPLITS, Findings, stable_id
from speechclip_plus.trainer.spoken_scenes.dataset import VOICES, flac, random_voice
from speechclip_plus.trainer.spoken_scenes.espeak import synthesise

STAMPS = Path("/usr/share/tuxpaint/stamps")
COLUMNS = ("audio", "image", "text", "speaker", "split")
_DESCRIPTION = re.compile(r"(?P<stem>.+)_desc(_(?P<language>[a-z]{2,3}(_[A-Z]{2})?))?\.(ogg|wav)")
_TRANSLATION = re.compile(r"(?P<language>[A-Za-z_@]+)\.utf8=(?P<text>.*)")


@dataclass
class Stamp:
    """An image, its captions and its recorded descriptions.

    Attributes:
        name: Path from the stamps' folder, without ending.
        image: The image.
        captions: Text by language; "en" for the first line.
        recordings: Recording by language; "en" for the one that names no language.
    """

    name: str
    image: Path
    captions: dict[str, str] = field(default_factory=dict)
    recordings: dict[str, Path] = field(default_factory=dict)

    @property
    def split(self) -> str:
        """A tenth of the images are for validation and a tenth for testing, whatever the language and the voice."""
        return split_of(self.captions.get("en", self.name).casefold().strip(" .!"))


def split_of(key: str) -> str:
    """The split of a caption or a recording, by its hash."""
    return {8: "validation", 9: "test"}.get(stable_id(key) % 10, "train")


def read_stamps(root: Path, findings: Findings) -> list[Stamp]:
    """Return all stamps that have a pixel image, in order of their names.

    Raises:
        FileNotFoundError: If there is none.
    """
    files = sorted(path for path in root.rglob("*") if path.is_file())

    def stem(path: Path) -> str:
        return path.relative_to(root).with_suffix("").as_posix()

    stamps = {stem(path): Stamp(stem(path), path) for path in files if path.suffix == ".png"}
    if not stamps:
        raise FileNotFoundError(f"{root} holds no images (.png): install Debian's package tuxpaint-stamps-default.")
    for path in files:
        name = path.relative_to(root).as_posix()
        if path.suffix == ".svg" and stem(path) not in stamps:
            findings.note("images that are drawings (.svg) only, left out", name)
        elif path.suffix == ".txt" and stem(path) in stamps:
            stamps[stem(path)].captions = _read_captions(path)
        elif path.suffix in (".ogg", ".wav"):
            match = _DESCRIPTION.fullmatch(name)
            if match is None:
                findings.note("stray recordings" if "_desc" in path.name else "sound effects, left out", name)
            elif match["stem"] not in stamps:
                findings.note("descriptions of images left out or missing", name)
            else:
                stamps[match["stem"]].recordings[match["language"] or "en"] = path
    return list(stamps.values())


def _read_captions(file: Path) -> dict[str, str]:
    first, *rest = file.read_text(encoding="utf-8-sig").splitlines() or [""]
    captions = {"en": first.strip()} if first.strip() else {}
    for line in rest:
        if (match := _TRANSLATION.fullmatch(line.strip())) and match["text"].strip():
            captions[match["language"]] = match["text"].strip()
    return captions


def recorded_rows(
    stamps: list[Stamp], languages: Sequence[str] | None, held_out: str, out: Path
) -> Iterator[dict[str, str]]:
    """Copy the recorded descriptions into `out` and yield a row for each; the language is the speaker."""
    for stamp in stamps:
        for language, file in sorted(stamp.recordings.items()):
            if languages is not None and language not in languages:
                continue
            audio = f"audio/{stamp.name}-{language}{file.suffix}"
            _copy(file, out / audio)
            # By what is in the file: images of the same thing come with copies of one recording.
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            yield {
                "audio": audio,
                "text": stamp.captions.get(language) or stamp.captions.get("en", ""),
                "speaker": language,
                "split": stamp.split if held_out == "images" else split_of(content),
                "image": _copy_image(stamp, out),
            }


def synthetic_rows(
    stamps: list[Stamp], voices_per_image: int, seed: int, held_out: str, out: Path
) -> Iterator[dict[str, str]]:
    """Let espeak-ng speak the English captions into `out` and yield a row for each caption and voice."""
    for stamp in (stamp for stamp in stamps if "en" in stamp.captions):
        for split in SPLITS if held_out == "recordings" else (stamp.split,):
            rng = np.random.default_rng([seed, stable_id(stamp.name)])
            for index in rng.choice(len(VOICES[split]), voices_per_image, replace=False):
                voice = random_voice(VOICES[split][int(index)], rng)
                audio = f"audio/{stamp.name}-{voice.name}.flac"
                (out / audio).parent.mkdir(parents=True, exist_ok=True)
                (out / audio).write_bytes(flac(synthesise(stamp.captions["en"], voice)))
                yield {
                    "audio": audio,
                    "text": stamp.captions["en"],
                    "speaker": voice.name,
                    "split": split,
                    "image": _copy_image(stamp, out),
                }


def _copy_image(stamp: Stamp, out: Path) -> str:
    image = f"images/{stamp.name}.png"
    if not (out / image).exists():
        _copy(stamp.image, out / image)
    return image


def _copy(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)


def write_stamps(
    output: Path,
    root: Path = STAMPS,
    voices: str = "recorded",
    held_out: str = "images",
    languages: Sequence[str] | None = None,
    voices_per_image: int = 4,
    seed: int = 0,
) -> Counter[str]:
    """Write the folder; returns how many recordings each split has.

    Raises:
        ValueError: If `output` exists, or nothing is described in `languages`.
        FileNotFoundError: If there are no stamps in `root`.
        SpeechSynthesisError: If espeak-ng is needed and not installed.
    """
    check_new_folder(output, force=False)
    findings = Findings()
    stamps = read_stamps(root, findings)
    sizes: Counter[str] = Counter()
    with finished_folder(output) as out:
        if voices == "recorded":
            rows = recorded_rows(stamps, languages, held_out, out)
        else:
            rows = synthetic_rows(stamps, voices_per_image, seed, held_out, out)
        with (out / "metadata.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            for row in rows:
                sizes[row["split"]] += 1
                writer.writerow(row)
        if not sizes:
            there = sorted({language for stamp in stamps for language in stamp.recordings})
            raise ValueError(f"Nothing is described in {', '.join(languages or ())}; there are {', '.join(there)}.")
    for line in findings.lines(shown=5):
        print(line)
    return sizes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUT")
    parser.add_argument("--stamps", type=Path, metavar="DIR", default=STAMPS, help=f"default: {STAMPS}")
    parser.add_argument("--voices", choices=("recorded", "synthetic"), default="recorded")
    parser.add_argument("--held-out", choices=("images", "recordings"), default="images")
    parser.add_argument("--languages", nargs="+", metavar="CODE", help="of the recorded voices; all by default")
    parser.add_argument("--voices-per-image", type=int, default=4, help="synthetic voices that speak each caption")
    parser.add_argument("--seed", type=int, default=0, help="of the synthetic voices")
    options = vars(parser.parse_args())
    print(dict(write_stamps(options.pop("output"), options.pop("stamps"), **options)))
