"""Folder of one's own recordings and images, with a table of what belongs together."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets

from .schema import (
    AUDIO_SUFFIXES,
    Findings,
    NoSuchSplitError,
    as_string,
    check_columns,
    given_folder,
    make_dataset,
    stable_id,
)

COLUMNS = ("audio", "image", "text", "speaker", "split")
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def load_folder(
    split: str,
    data_dir: str | Path | None,
    findings: Findings,
    *,
    columns: Mapping[str, str] | None = None,
    validation_share: float = 0.0,
) -> datasets.Dataset:
    """Read a folder of recordings and images.

    It holds a `metadata.csv`, `metadata.jsonl` or `metadata.parquet` with the columns `audio` and `image` (paths from
    there; or `audio_file_name`, `image_file_name`, or `file_name` for one of them) and, where known, `text`, `speaker`
    and `split`; or one folder of that kind per split. Without any mention of splits everything is "train". Rows with
    the same image share an `image_id`.

    `columns` gives the table's name of each column that has another name there, for instance `{"audio": "sound"}`.
    `validation_share` is, of a table without splits, the share of images (chosen by a hash of their paths) whose rows
    are "validation" instead of "train". What is missing or cannot be understood is an error that names file and row.
    """
    check_columns(columns or {}, COLUMNS)
    root = given_folder("folder", data_dir, "the folder with your metadata.csv, .jsonl or .parquet.")
    divided = metadata_file(root) is None and (root / split).is_dir()
    root = root / split if divided else root
    file = metadata_file(root)
    if file is None:
        if tables := metadata_tables(root):
            folders = ", ".join(sorted({table.parent.name for table in tables}))
            raise NoSuchSplitError(f"{root} has no folder of the split {split!r}: it has {folders}.")
        raise FileNotFoundError(
            f"{root} holds neither {' nor '.join(METADATA_FILES)}: write one, with audio, image, text."
        )
    table = enumerate(read_table(file), 1)
    rows = [_common_row(row, place, columns or {}) | {"number": number} for number, (place, row) in table]
    if not divided:
        rows = _rows_of_split(rows, split, validation_share, file)
    made = []
    image_ids: dict[Path, int] = {}
    for row in rows:
        paths = {name: (root / row[name]).resolve() for name in ("audio", "image")}
        absent = [name for name, path in paths.items() if not path.is_file()]
        for name in absent:
            findings.missing(f"{row['place']}: there is no {name} file {paths[name]}.")
        if not absent:
            image_id = image_ids.setdefault(paths["image"], len(image_ids))
            files = {name: str(path) for name, path in paths.items()}
            made.append({**row, **files, "image_id": image_id, "caption_id": f"{split}-{row['number']}"})
    return make_dataset(made, split)


def metadata_tables(folder: Path) -> list[Path]:
    """Find the tables of a folder and of the folders in it."""
    return sorted(path for name in METADATA_FILES for path in (*folder.glob(name), *folder.glob(f"*/{name}")))


def metadata_file(folder: Path) -> Path | None:
    """Return the folder's table, or None if it has none; several are a ValueError."""
    found = [folder / name for name in METADATA_FILES if (folder / name).is_file()]
    if len(found) > 1:
        raise ValueError(f"{folder} holds both {' and '.join(path.name for path in found)}: keep one of them.")
    return found[0] if found else None


def read_table(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a table, each after its place: "metadata.csv, row 1 (line 2)"; none are a ValueError."""
    empty = True
    try:
        for place, row in _READERS[file.suffix](file):
            empty = False
            if not isinstance(row, dict):
                raise ValueError(f"{place} is no object but {row!r}: expected audio, image and text by name.")
            yield place, row
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 ({error}): save it in that encoding.") from error
    if empty:
        raise ValueError(f"{file} has no rows.")


def _read_csv(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    reader = csv.reader(io.StringIO(file.read_bytes().decode("utf-8-sig"), newline=""), strict=True)
    header = next(reader, [])
    if doubled := [name for name in header if header.count(name) > 1]:
        raise ValueError(f"{file}, line 1: the column {doubled[0]!r} is there twice.")
    number = 1
    while True:
        place = f"{file}, row {number} (line {reader.line_num + 1})"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{place}: {error}; is a quote not closed?") from error
        if fields is None:
            return
        if len(fields) not in (0, len(header)):
            raise ValueError(
                f"{place}: {len(fields)} fields, but the header has {len(header)}; put quotes around text with commas."
            )
        if fields:
            yield place, dict(zip(header, fields, strict=True))
            number += 1


def _read_jsonl(file: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    for line_number, line in enumerate(file.read_bytes().decode("utf-8-sig").split("\n"), 1):
        if line.strip():
            number += 1
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {line_number} is no JSON: {error}.") from error
            yield f"{file}, row {number} (line {line_number})", row


def _read_parquet(file: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(file).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file} is no parquet file: {error}") from error
    yield from ((f"{file}, row {number}", row) for number, row in enumerate(rows, 1))


_READERS = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}


def _common_row(row: dict[str, Any], place: str, columns: Mapping[str, str]) -> dict[str, Any]:
    if absent := [(name, own) for name, own in columns.items() if own not in row]:
        name, own = absent[0]
        there = ", ".join(map(str, row))
        raise ValueError(f"{place} has no column {own!r}, which columns gives for {name}; there are {there}.")
    common = {name: row.get(columns.get(name, name)) for name in COLUMNS}
    for name in ("audio", "image"):
        common[name] = common[name] or row.get(f"{name}_file_name")
    if file_name := row.get("file_name"):
        name = "audio" if str(file_name).lower().endswith(AUDIO_SUFFIXES) else "image"
        common[name] = common[name] or file_name
    if missing := [name for name in ("audio", "image") if common[name] in (None, "")]:
        known = ", ".join(map(str, row)) or "nothing"
        hint = "" if missing[0] in row else f"; say which is {missing[0]} with columns={{{missing[0]!r}: ...}}"
        raise ValueError(
            f"{place} has no {' and no '.join(missing)}, a path that every row needs. Its columns: {known}{hint}."
        )
    for name in ("audio", "image"):
        if not isinstance(common[name], str):
            raise ValueError(f"{place}: {name} is {type(common[name]).__name__}, expected the path of a file.")
    strings = {name: as_string(common[name], name, place) for name in ("text", "speaker", "split")}
    return {**common, **strings, "place": place}


def _rows_of_split(
    rows: list[dict[str, Any]], split: str, validation_share: float, file: Path
) -> list[dict[str, Any]]:
    if not isinstance(validation_share, (int, float)) or not 0 <= validation_share < 1:
        raise ValueError(f"validation_share={validation_share}: expected a number from 0 to below 1.")
    divisible = not any(row["split"] for row in rows)
    if validation_share and not divisible:
        raise ValueError(f"{file} has a column split, which validation_share would contradict: leave that out.")
    # The images with the smallest hashes: always some, however few images there are.
    images = sorted({row["image"] for row in rows}, key=stable_id)
    held_out = set(images[: max(1, round(validation_share * len(images)))] if validation_share else ())
    for row in rows:
        row["split"] = row["split"] or ("validation" if row["image"] in held_out else "train")
    chosen = [row for row in rows if row["split"] == split]
    if not chosen:
        there = ", ".join(sorted({row["split"] for row in rows}))
        error = NoSuchSplitError(f"{file} has no rows of the split {split!r}: it has {there}.")
        error.divisible = split == "validation" and divisible and not validation_share
        if error.divisible:
            error.args = (f"{error} Hold a share of the images out with validation_share=0.1.",)
        raise error
    return chosen
