"""A folder of one's own recordings and pictures, with a table of what belongs together."""

import csv
import json
from pathlib import Path
from typing import Any

import datasets

from .schema import Findings, NoSuchSplitError, make_dataset

METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def load_folder(split: str, data_dir: str | Path | None, findings: Findings) -> datasets.Dataset:
    """Read a folder of recordings and pictures.

    The folder holds a ``metadata.csv``, ``metadata.jsonl`` or ``metadata.parquet`` with the columns ``audio`` and
    ``image`` (paths from that file's place) and, where known, ``text``, ``speaker`` and ``split``; or one folder of
    that kind per split, named after it. Without any mention of splits everything is "train". Rows with the same
    picture share an ``image_id``.

    Raises:
        ValueError: no ``data_dir``, missing columns, empty cells, no rows, or no such split.
        FileNotFoundError: the folder, its metadata or a file named there is missing.
    """
    if data_dir is None:
        raise ValueError("The data set 'folder' needs data_dir: the folder with your metadata.csv or metadata.jsonl.")
    root = Path(data_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}.")
    divided = metadata_file(root) is None and (root / split).is_dir()
    if divided:
        root = root / split
    file = metadata_file(root)
    if file is None:
        folders = sorted(path.parent.name for path in root.glob("*/metadata.*") if path.name in METADATA_FILES)
        if folders:
            raise NoSuchSplitError(f"{root} has no folder of the split {split!r}: it has {', '.join(folders)}.")
        raise FileNotFoundError(
            f"{root} holds neither {' nor '.join(METADATA_FILES)}: write one, with audio, image, text."
        )
    rows = _read_rows(file)
    if not divided:
        found = sorted({row.get("split") or "train" for row in rows})
        rows = [row for row in rows if (row.get("split") or "train") == split]
        if not rows:
            raise NoSuchSplitError(f"{file} has no rows of the split {split!r}: it has {', '.join(found)}.")
    made = []
    image_ids: dict[Path, int] = {}
    for row in rows:
        paths = {name: (root / row[name]).resolve() for name in ("audio", "image")}
        absent = [name for name, path in paths.items() if not path.is_file()]
        for name in absent:
            findings.missing(f"{file}, row {row['row']}: there is no {name} file {paths[name]}.")
        if absent:
            continue
        made.append(
            {
                "audio": str(paths["audio"]),
                "image": str(paths["image"]),
                "image_id": image_ids.setdefault(paths["image"], len(image_ids)),
                "text": row.get("text") or "",
                "caption_id": f"{split}-{row['row']}",
                "speaker": str(row.get("speaker") or ""),
            }
        )
    return make_dataset(made, split)


def metadata_file(folder: Path) -> Path | None:
    """Return the folder's table, or None if it has none.

    Raises:
        ValueError: if it has several.
    """
    found = [folder / name for name in METADATA_FILES if (folder / name).is_file()]
    if len(found) > 1:
        raise ValueError(f"{folder} holds both {' and '.join(path.name for path in found)}: keep one of them.")
    return found[0] if found else None


def _read_rows(file: Path) -> list[dict[str, Any]]:
    """Read the metadata; each row gets its number, from 1, as ``row``."""
    if file.suffix == ".parquet":
        rows = _read_parquet(file)
    else:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream)) if file.suffix == ".csv" else _read_jsonl(file, stream)
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
        if wrong := [name for name in ("audio", "image") if not isinstance(row[name], str)]:
            raise ValueError(
                f"{file}, row {number}: {wrong[0]} is {type(row[wrong[0]]).__name__}, expected the path of a file."
            )
        row["row"] = number
    return rows


def _read_jsonl(file: Path, stream: Any) -> list[Any]:
    rows = []
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {number} is no JSON: {error}.") from error
    return rows


def _read_parquet(file: Path) -> list[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(file).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file} is no parquet file: {error}") from error
