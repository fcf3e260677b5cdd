"""Speech and image data sets by name, all with the same columns.

``audio`` (``datasets.Audio`` at 16 kHz, not decoded), ``image`` (``datasets.Image``, not decoded), ``image_id``
(int64, the same for all captions of a picture), ``text``, ``caption_id``, ``speaker`` (strings, empty where unknown).
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets

from .spoken_scenes import FEATURES, build_spoken_scenes

METADATA_FILES = ("metadata.csv", "metadata.jsonl")


def load_speech_image_dataset(
    name_or_path: str | Path, split: str = "train", data_dir: str | Path | None = None, **options: Any
) -> datasets.Dataset:
    """Load one split of a data set of spoken captions and pictures.

    Args:
        name_or_path: "spoken_scenes" (made on the spot), "folder" (files of your own, in ``data_dir``), or the path of
            such a folder.
        split: "train", "validation" or "test".
        data_dir: where the files are, for data sets that are read from files.
        **options: passed on to the data set: for ``spoken_scenes`` see ``build_spoken_scenes``.

    Returns:
        A data set with the columns named above.

    Raises:
        ValueError: unknown name, or a split that the data set does not have.
        FileNotFoundError: a folder or file is missing.
        TypeError: an option that the data set does not know.
    """
    name = str(name_or_path)
    if name not in DATASETS and Path(name_or_path).is_dir():
        if data_dir is not None:
            raise ValueError(f"Both a folder ({name}) and data_dir={str(data_dir)!r} were given: leave one out.")
        name, data_dir = "folder", name_or_path
    if name not in DATASETS:
        raise ValueError(
            f"There is no data set {name!r} and no folder of that name: choose one of {', '.join(sorted(DATASETS))}, "
            f"or give the path of a folder with a {' or '.join(METADATA_FILES)}."
        )
    return DATASETS[name](split, data_dir, **options)


def load_folder(split: str, data_dir: str | Path | None) -> datasets.Dataset:
    """Read a folder of recordings and pictures.

    The folder holds a ``metadata.csv`` or ``metadata.jsonl`` with the columns ``audio`` and ``image`` (paths from that
    file's place) and, where known, ``text``, ``speaker`` and ``split``; or one folder of that kind per split, named
    after it. Without any mention of splits everything is "train". Rows with the same picture share an ``image_id``.

    Raises:
        ValueError: no ``data_dir``, missing columns, empty cells, no rows, or no such split.
        FileNotFoundError: the folder, its metadata or a file named there is missing.
    """
    if data_dir is None:
        raise ValueError("The data set 'folder' needs data_dir: the folder with your metadata.csv or metadata.jsonl.")
    root = Path(data_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}.")
    if (root / split).is_dir() and _metadata_file(root) is None:
        root, divided = root / split, True
    else:
        divided = False
    file = _metadata_file(root)
    if file is None:
        raise FileNotFoundError(
            f"{root} holds neither {' nor '.join(METADATA_FILES)}: write one, with audio, image, text."
        )
    rows = _read_rows(file)
    if not divided:
        found = sorted({row.get("split") or "train" for row in rows})
        rows = [row for row in rows if (row.get("split") or "train") == split]
        if not rows:
            raise ValueError(f"{file} has no rows of the split {split!r}: it has {', '.join(found)}.")
    columns: dict[str, list[Any]] = {name: [] for name in FEATURES}
    image_ids: dict[Path, int] = {}
    for row in rows:
        paths = {name: (root / row[name]).resolve() for name in ("audio", "image")}
        for name, path in paths.items():
            if not path.is_file():
                raise FileNotFoundError(f"{file}, row {row['row']}: there is no {name} file {path}.")
        columns["audio"].append({"bytes": None, "path": str(paths["audio"])})
        columns["image"].append({"bytes": None, "path": str(paths["image"])})
        columns["image_id"].append(image_ids.setdefault(paths["image"], len(image_ids)))
        columns["text"].append(row.get("text") or "")
        columns["caption_id"].append(f"{split}-{row['row']}")
        columns["speaker"].append(row.get("speaker") or "")
    made = datasets.Dataset.from_dict(columns, features=FEATURES, split=datasets.NamedSplit(split))
    return made.cast_column("audio", datasets.Audio(sampling_rate=16_000, decode=False))


def _metadata_file(folder: Path) -> Path | None:
    found = [folder / name for name in METADATA_FILES if (folder / name).is_file()]
    if len(found) > 1:
        raise ValueError(f"{folder} holds both {' and '.join(METADATA_FILES)}: keep one of them.")
    return found[0] if found else None


def _read_rows(file: Path) -> list[dict[str, Any]]:
    """Read the metadata; each row gets its number, from 1, as ``row``."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        if file.suffix == ".csv":
            rows: list[Any] = list(csv.DictReader(stream))
        else:
            rows = []
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise ValueError(f"{file}, line {number} is no JSON: {error}.") from error
    if not rows:
        raise ValueError(f"{file} has no rows.")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{file}, row {number} is no object but {row!r}: expected audio, image and text by name.")
        missing = [name for name in ("audio", "image") if not row.get(name)]
        if missing:
            raise ValueError(
                f"{file}, row {number} has no {' and no '.join(missing)}: every row needs audio and image (paths), "
                f"and should have text; this one has {', '.join(map(str, row)) or 'nothing'}."
            )
        row["row"] = number
    return rows


def _load_spoken_scenes(split: str, data_dir: str | Path | None, **options: Any) -> datasets.Dataset:
    if data_dir is not None:
        raise ValueError("The data set 'spoken_scenes' is made on the spot and reads no data_dir: leave it out.")
    return build_spoken_scenes(split, **options)


DATASETS: dict[str, Callable[..., datasets.Dataset]] = {"spoken_scenes": _load_spoken_scenes, "folder": load_folder}
