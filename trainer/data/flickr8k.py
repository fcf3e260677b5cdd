"""`flickr8k`: the images and captions of Flickr8k with the Flickr 8k Audio Caption Corpus, as they unpack."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import datasets

from .schema import Findings, check_split, files_in, first_existing, given_folder, make_dataset, stable_id

LISTS = {
    "train": "Flickr_8k.trainImages.txt",
    "validation": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
_CAPTIONS = ("Flickr8k.token.txt", "captions.txt", "Flickr8k.lemma.token.txt")
_IMAGE_FOLDERS = ("Flickr8k_Dataset/Flicker8k_Dataset", "Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images")
_RECORDING = re.compile(r"(?P<name>.+)_(?P<number>\d+)\.wav")
_TOKEN_LINE = re.compile(r"(?P<image>.+?\.jpg)(?P<stray>\.\d+)?#(?P<number>\d+)\s+(?P<text>.*)")

DOWNLOAD = (
    "Flickr8k in one folder: flickr_audio.tar.gz of the Flickr 8k Audio Caption Corpus by MIT CSAIL "
    "(groups.csail.mit.edu/sls/downloads/flickraudio) with flickr_audio/wavs, and Flickr8k_Dataset.zip and "
    "Flickr8k_text.zip of the University of Illinois (hockenmaier.cs.illinois.edu/8k-pictures.html), unpacked there."
)


def load_flickr8k(split: str, data_dir: str | Path | None, findings: Findings) -> datasets.Dataset:
    """Read one of the official splits (6,000, 1,000 and 1,000 images, five spoken captions each).

    `data_dir` holds the archives as they unpack, each in its own folder or all files directly. Recording
    `NAME_k.wav` says caption k of `NAME.jpg` unless `wav2capt.txt` tells otherwise; speakers are those of
    `wav2spk.txt`. Captions come from `Flickr8k.token.txt`, else from `captions.txt`, else from the lemmas.
    What the corpus lacks, and files that belong to nothing, are noted, not errors.

    Raises:
        ValueError: If the split is unknown or there is no `data_dir`.
        FileNotFoundError: If a part of the corpus is missing; the message says what to download.
    """
    check_split(split)
    root = given_folder("flickr8k", data_dir, DOWNLOAD)
    text_folders = (root, root / "Flickr8k_text")
    images = _found(root, "the images (Flicker8k_Dataset or Images)", [root / name for name in _IMAGE_FOLDERS])
    recordings = _found(root, "the recordings (flickr_audio/wavs)", [root / "flickr_audio/wavs", root / "wavs"])
    listing = _found(root, f"the list {LISTS[split]}", [folder / LISTS[split] for folder in text_folders])
    captions_file = _found(
        root, "the captions (Flickr8k.token.txt)", [folder / name for name in _CAPTIONS for folder in text_folders]
    )
    if captions_file.name == _CAPTIONS[-1]:
        findings.note("captions that are lemmas, not what was said", captions_file.name)
    captions: dict[str, dict[int, str]] = {}  # image: number: text
    for image, number, text in _read_captions(captions_file, findings):
        captions.setdefault(image, {})[number] = text
    said = _read_pairs(recordings.parent / "wav2capt.txt")
    speakers = _read_pairs(recordings.parent / "wav2spk.txt")
    listed = {name for file in LISTS.values() for name in _read_list(listing.with_name(file))}
    names = files_in(images)
    for name in sorted(names.difference(listed)):
        findings.note("images in none of the lists", name)
    spoken: dict[str, list[tuple[int, str]]] = {}  # image: its recordings
    for name in sorted(files_in(recordings)):
        match = _RECORDING.fullmatch(name)
        if match is None or name.startswith("."):
            findings.note("stray files beside the recordings", name)
            continue
        image, number = _caption_of(name, said) or (f"{match['name']}.jpg", int(match["number"]))
        if image not in listed:
            findings.note("recordings of images in none of the lists", name)
        else:
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
            f"Of the images in {listing} none is both in {images} and spoken in {recordings}. Needed is {DOWNLOAD}"
        )
    return make_dataset(rows, split)


def _found(root: Path, what: str, candidates: list[Path]) -> Path:
    path = first_existing(candidates)
    if path is None:
        raise FileNotFoundError(f"{root} lacks {what}. Needed is {DOWNLOAD}")
    return path


def _read_list(file: Path) -> list[str]:
    if not file.is_file():
        return []  # the list of another split
    return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def _read_pairs(file: Path) -> dict[str, list[str]]:
    """Read `FILE WORD ...` lines; nothing if there is no such file."""
    return {first: rest for first, *rest in (line.split() for line in _read_list(file)) if rest}


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
