"""`spokencoco`: the spoken captions of COCO, by the lists of the release or by Karpathy's split."""

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import datasets

from .schema import Findings, NoSuchSplitError, check_split, files_in, first_existing, given_folder, make_dataset

_NAMES = {"train": "train", "validation": "val", "test": "test"}
_IMAGE_FOLDERS = ("mscoco", "mscoco_img", "coco", "COCO", "images", ".")
_RELEASE, _KARPATHY = "SpokenCOCO_{}.json", "SpokenCOCO_ksplit_{}.json"

DOWNLOAD = (
    "in one folder: SpokenCOCO.tar.gz of MIT CSAIL (data.csail.mit.edu/placesaudio/SpokenCOCO.tar.gz) with "
    "SpokenCOCO_train.json, SpokenCOCO_val.json and wavs, and the images train2014.zip and val2014.zip of COCO 2014 "
    "(cocodataset.org/#download), unpacked there or in a folder mscoco in it."
)


def load_spokencoco(split: str, data_dir: str | Path | None, findings: Findings) -> datasets.Dataset:
    """Read a split of SpokenCOCO.

    If there are lists of Karpathy's split (`SpokenCOCO_ksplit_{train,val,test}.json`), they are used, otherwise
    the two of the release (`SpokenCOCO_{train,val}.json`), in `data_dir` or its folder `SpokenCOCO`. Images
    are looked for in `data_dir` or its folder `mscoco`. `image_id` is the list's `reassign_id` where it has
    one, otherwise COCO's own number.

    Raises:
        ValueError: If the split is unknown or not in these lists, there is no `data_dir`, or a list is none.
        FileNotFoundError: If a part of the corpus, or a file named in the list, is missing.
    """
    check_split(split)
    root = given_folder("spokencoco", data_dir, DOWNLOAD)
    file = _list_file(root, split)
    entries = _read(file)
    folders = sorted({str(entry.get("image", "")).split("/")[0] for entry in entries if isinstance(entry, dict)})
    bases = [folder / name for folder in (root, file.parent) for name in _IMAGE_FOLDERS]
    images = next((base for base in bases if any((base / name).is_dir() for name in folders)), None)
    if images is None:
        raise FileNotFoundError(f"{root} lacks the images ({', '.join(folders)}). Needed is, {DOWNLOAD}")
    if absent := [name for name in folders if not (images / name).is_dir()]:
        raise FileNotFoundError(f"{images} lacks the images of {', '.join(absent)}. Needed is, {DOWNLOAD}")
    recordings = next((base for base in (file.parent, root) if (base / "wavs").is_dir()), None)
    if recordings is None:
        raise FileNotFoundError(f"{root} lacks the recordings (wavs). Needed is, {DOWNLOAD}")
    return make_dataset(_rows(file, entries, images, recordings, findings), split)


def _list_file(root: Path, split: str) -> Path:
    folders = (root, root / "SpokenCOCO")
    karpathy = first_existing(folder / _KARPATHY.format(name) for folder in folders for name in _NAMES.values())
    release = first_existing(folder / _RELEASE.format(name) for folder in folders for name in ("train", "val"))
    known = karpathy or release
    if known is None:
        raise FileNotFoundError(f"{root} has no {_RELEASE.format('train')}. Needed is, {DOWNLOAD}")
    file = known.with_name((_KARPATHY if karpathy else _RELEASE).format(_NAMES[split]))
    if file.is_file():
        return file
    if split == "test":
        raise NoSuchSplitError(
            f"{known.parent} lacks {_KARPATHY.format('test')}: the release of SpokenCOCO has no test split, only "
            f"Karpathy's split has, whose three lists ({_KARPATHY.format('{train,val,test}')}) have to be there."
        )
    raise FileNotFoundError(f"{known.parent} lacks {file.name}. Needed is, {DOWNLOAD}")


def _read(file: Path) -> list[Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("data"), list) or not content["data"]:
        raise ValueError(f'{file} is no list of SpokenCOCO: expected {{"data": [images with their captions]}}.')
    return content["data"]


def _rows(
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
