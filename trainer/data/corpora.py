"""Published corpora as they unpack: Flickr8k with its audio captions, and SpokenCOCO."""

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import datasets

from .schema import (
    Findings,
    NoSuchSplitError,
    check_split,
    files_in,
    given_folder,
    make_dataset,
    stable_id,
)

_FLICKR8K_SPLITS = {"train": "train", "validation": "dev", "test": "test"}
_CAPTIONS = ("Flickr8k.token.txt", "Flickr8k_text/Flickr8k.token.txt", "captions.txt", "Flickr8k_text/captions.txt")
_FLICKR8K_IMAGES = ("Flickr8k_Dataset/Flicker8k_Dataset", "Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images")
_RECORDING = re.compile(r"(?P<name>.+)_(?P<number>\d+)\.wav")
_TOKEN_LINE = re.compile(r"(?P<image>.+?\.jpg)(?P<stray>\.\d+)?#(?P<number>\d+)\s+(?P<text>.*)")

FLICKR8K_DOWNLOAD = (
    "Flickr8k in one folder: flickr_audio.tar.gz of the Flickr 8k Audio Caption Corpus by MIT CSAIL "
    "(groups.csail.mit.edu/sls/downloads/flickraudio) with flickr_audio/wavs, and Flickr8k_Dataset.zip and "
    "Flickr8k_text.zip of the University of Illinois (hockenmaier.cs.illinois.edu/8k-pictures.html), unpacked there."
)


def load_flickr8k(split: str, data_dir: str | Path | None, findings: Findings) -> datasets.Dataset:
    """Read one of the official splits of `data_dir`, which holds the archives as docs/data.md shows.

    What the corpus lacks, and files that belong to nothing, are noted, not errors; a part that is missing is a
    FileNotFoundError that says what to download.
    """
    check_split(split)
    root = given_folder("flickr8k", data_dir, FLICKR8K_DOWNLOAD)
    found = partial(_found, root, FLICKR8K_DOWNLOAD)
    images = found("the images (Flicker8k_Dataset or Images)", _FLICKR8K_IMAGES)
    recordings = found("the recordings (flickr_audio/wavs)", ("flickr_audio/wavs", "wavs"))
    list_name = f"Flickr_8k.{_FLICKR8K_SPLITS[split]}Images.txt"
    listing = found(f"the list {list_name}", (list_name, f"Flickr8k_text/{list_name}"))
    captions_file = found("the captions (Flickr8k.token.txt)", _CAPTIONS)
    captions: dict[str, dict[int, str]] = {}  # image: number: text
    for image, number, text in _read_captions(captions_file, findings):
        captions.setdefault(image, {})[number] = text
    said = _read_pairs(recordings.parent / "wav2capt.txt")
    speakers = _read_pairs(recordings.parent / "wav2spk.txt")
    names = files_in(images)
    spoken: dict[str, list[tuple[int, str]]] = {}  # image: its recordings
    for name in sorted(files_in(recordings)):
        match = _RECORDING.fullmatch(name)
        if match is None or name.startswith("."):
            findings.note("stray files beside the recordings", name)
            continue
        image, number = _caption_of(name, said) or (f"{match['name']}.jpg", int(match["number"]))
        spoken.setdefault(image, []).append((number, name))
    rows = []
    for image in dict.fromkeys(_read_list(listing)):
        if image not in names:
            findings.note("images of the list missing", image)
            continue
        written = captions.get(image, {})
        for number in sorted(set(written).difference(number for number, _ in spoken.get(image, []))):
            findings.note("recordings missing", f"{image.removesuffix('.jpg')}_{number}.wav")
        for number, name in sorted(spoken.get(image, [])):
            if number not in written:
                findings.note("recordings without a written caption (kept)", name)
            rows.append(
                {
                    "audio": str(recordings / name),
                    "image": str(images / image),
                    "image_id": stable_id(image),
                    "text": written.get(number, ""),
                    "caption_id": name.removesuffix(".wav"),
                    "speaker": speakers.get(name, [""])[0],
                }
            )
    if not rows:
        raise FileNotFoundError(
            f"Of the images in {listing} none is both in {images} and spoken in {recordings}. "
            f"Needed is {FLICKR8K_DOWNLOAD}"
        )
    return make_dataset(rows, split)


def _found(root: Path, needed: str, what: str, candidates: Iterable[str | Path]) -> Path:
    """Return the first path that exists."""
    for candidate in candidates:
        if (path := root / candidate).exists():
            return path
    raise FileNotFoundError(f"{root} lacks {what}. Needed is {needed}")


def _read_list(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def _read_pairs(file: Path) -> dict[str, list[str]]:
    """Read `FILE WORD ...` lines; nothing if there is no such file."""
    lines = _read_list(file) if file.is_file() else []
    return {first: rest for first, *rest in map(str.split, lines) if rest}


def _caption_of(name: str, said: dict[str, list[str]]) -> tuple[str, int] | None:
    """Image and caption number by `wav2capt.txt`, whose lines are `NAME_k.wav NAME.jpg #k`."""
    entry = said.get(name, [])
    return (entry[0], int(entry[1][1:])) if len(entry) == 2 and re.fullmatch(r"#\d+", entry[1]) else None


def _read_captions(file: Path, findings: Findings) -> Iterator[tuple[str, int, str]]:
    """Yield image, number and text of each caption."""
    if file.name == "captions.txt":  # the copy on Kaggle: no numbers, the captions of a image in their order
        seen: dict[str, int] = {}
        with file.open(encoding="utf-8-sig", newline="") as stream:
            # Commas in captions are not quoted in all copies.
            for image, *text in (row for row in csv.reader(stream) if row and row != ["image", "caption"]):
                yield image, seen.setdefault(image, 0), ",".join(text).strip()
                seen[image] += 1
        return
    for line in _read_list(file):
        match = _TOKEN_LINE.fullmatch(line)
        if match is None:
            findings.note(f"lines of {file.name} that are no caption", line[:60])
            continue
        if match["stray"]:
            findings.note(f"captions of {file.name} with a stray ending of the image's name", line.split("\t")[0])
        yield match["image"], int(match["number"]), match["text"].strip()


_COCO_SPLITS = {"train": "train", "validation": "val", "test": "test"}
_COCO_IMAGES = ("mscoco", "mscoco_img", "coco", "COCO", "images", ".")
_RELEASE, _KARPATHY = "SpokenCOCO_{}.json", "SpokenCOCO_ksplit_{}.json"

SPOKENCOCO_DOWNLOAD = (
    "in one folder: SpokenCOCO.tar.gz of MIT CSAIL (data.csail.mit.edu/placesaudio/SpokenCOCO.tar.gz) with "
    "SpokenCOCO_train.json, SpokenCOCO_val.json and wavs, and the images train2014.zip and val2014.zip of COCO 2014 "
    "(cocodataset.org/#download), unpacked there or in a folder mscoco in it."
)


def load_spokencoco(split: str, data_dir: str | Path | None, findings: Findings) -> datasets.Dataset:
    """Read a split of SpokenCOCO in `data_dir`, by the lists of Karpathy's split if they are there."""
    check_split(split)
    root = given_folder("spokencoco", data_dir, SPOKENCOCO_DOWNLOAD)
    found = partial(_found, root, SPOKENCOCO_DOWNLOAD)
    folders = (root, root / "SpokenCOCO")
    karpathy = any((folder / _KARPATHY.format(name)).is_file() for folder in folders for name in _COCO_SPLITS.values())
    name = (_KARPATHY if karpathy else _RELEASE).format(_COCO_SPLITS[split])
    if split == "test" and not karpathy:
        raise NoSuchSplitError(
            f"{root} lacks {_KARPATHY.format('test')}; the release of SpokenCOCO has no test split."
        )
    file = found(name, (name, f"SpokenCOCO/{name}"))
    entries = _read_entries(file)
    recordings = found("the recordings (wavs)", [base / "wavs" for base in (file.parent, root)]).parent
    inside = sorted({str(entry.get("image", "")).split("/")[0] for entry in entries if isinstance(entry, dict)})
    bases = [folder / base for folder in (root, file.parent) for base in _COCO_IMAGES]
    images = found(f"the images ({', '.join(inside)})", [base / part for base in bases for part in inside]).parent
    return make_dataset(_coco_rows(file, entries, images, recordings, findings), split)


def _read_entries(file: Path) -> list[Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("data"), list) or not content["data"]:
        raise ValueError(f'{file} is no list of SpokenCOCO: expected {{"data": [images with their captions]}}.')
    return content["data"]


def _coco_rows(
    file: Path, entries: list[Any], images: Path, recordings: Path, findings: Findings
) -> Iterator[dict[str, Any]]:
    listed = cache(files_in)  # every folder once: there are half a million files
    for number, entry in enumerate(entries):
        try:
            image, captions = entry["image"], entry["captions"]
            image_id = int(entry["reassign_id"] if "reassign_id" in entry else Path(image).stem.split("_")[-1])
            spoken = [(caption["wav"], caption["text"], caption["uttid"], caption["speaker"]) for caption in captions]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file}, entry {number} of data is not understood ({type(error).__name__}: {error}): expected image, "
                "and captions with wav, text, uttid and speaker."
            ) from error
        image = str(images / image)
        if os.path.basename(image) not in listed(os.path.dirname(image)):
            findings.missing(f"{file}, entry {number}: there is no image {image}.")
            continue
        for wav, text, uttid, speaker in spoken:
            audio = str(recordings / wav)
            if os.path.basename(audio) not in listed(os.path.dirname(audio)):
                findings.missing(f"{file}, entry {number}: there is no recording {audio}.")
                continue
            yield {
                "audio": audio,
                "image": image,
                "image_id": image_id,
                "text": text.strip(),
                "caption_id": str(uttid),
                "speaker": str(speaker),
            }
