"""Collections of images or audio to index: the files of a folder, or the rows of a data set."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from ...modeling_speechclip_plus.input_paths import AUDIO_SUFFIXES, IMAGE_SUFFIXES, list_files, walk_files
from ..data.folder import METADATA_FILES, read_table
from ..data.load import DATASETS, is_data_path, is_hub_repository, load_mapped, read_dataset, splits_of
from ..data.schema import Findings, NoSuchSplitError
from ..spoken_scenes.scenes import SPLITS

COLUMNS = {"images": "image", "audio": "audio"}
_SUFFIXES = {"images": IMAGE_SUFFIXES, "audio": AUDIO_SUFFIXES}


@dataclass
class Collection:
    """Images or utterances in a fixed order.

    Attributes:
        kind: `"images"` or `"audio"`.
        facts: Where they came from, as plain values.
        ids: Their names, each another one.
        rows: For each a dictionary with its `image` or `audio` (`{"path": ..., "bytes": ...}`) and `text`; read when
            asked for.
        missing: A sentence for each file that is left out before any is read.
    """

    kind: str
    facts: dict[str, Any]
    ids: Sequence[str]
    rows: Sequence[dict[str, Any]] | datasets.Dataset
    missing: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> tuple[str, dict[str, Any], str]:
        """Return id, source and text of an item."""
        row = self.rows[number]
        return self.ids[number], row[COLUMNS[self.kind]], row["text"] or ""

    def identity(self) -> dict[str, Any]:
        """What tells this collection from another, or from what it was before something was added."""
        digest = hashlib.blake2b("\0".join(self.ids).encode(), digest_size=16)
        return {**self.facts, "items": len(self), "ids": digest.hexdigest()}


def open_collection(
    source: str | Path,
    kind: str | None = None,
    splits: Sequence[str] | None = None,
    data_dir: str | Path | None = None,
    on_error: str = "raise",
    **options: Any,
) -> Collection:
    """Open what shall be indexed; the arguments are those of `build_index`.

    Raises:
        ValueError: If a folder holds both, nothing, or none of that kind; and as `load_speech_image_dataset`.
        FileNotFoundError: If there is nothing of that name.
    """
    if kind is not None and kind not in COLUMNS:
        raise ValueError(f"kind={kind!r}: choose {' or '.join(COLUMNS)}.")
    path = Path(source).expanduser()
    if str(source) in DATASETS or is_hub_repository(str(source)):
        return _dataset_collection(str(source), kind or "images", splits, data_dir, on_error, options)
    if not path.exists():
        raise FileNotFoundError(
            f"There is no folder {source}: give a folder of images or audio files, parquet files, owner/name of a "
            f"data set on the Hub, or one of {', '.join(sorted(DATASETS))}."
        )
    tables = _file_name_tables(path)
    if not tables and (_metadata(path) or is_data_path(path)):
        return _dataset_collection(path, kind or "images", splits, data_dir, on_error, options)
    if path.is_file():
        raise ValueError(f"{path} is a file; expected a folder, parquet files, or a data set.")
    if splits is not None or data_dir is not None or options:
        raise ValueError(f"{path} is a folder of files: splits, data_dir and options are for data sets.")
    return _folder_collection(path.absolute(), kind, tables, on_error)


def _metadata(folder: Path) -> list[Path]:
    tables = [*folder.glob("metadata.*"), *folder.glob("*/metadata.*")]
    return sorted(file for file in tables if file.name in METADATA_FILES)


def _file_name_tables(folder: Path) -> list[tuple[Path, list[dict[str, Any]]]]:
    """Read the tables of a folder as `datasets` has them (`imagefolder`, `audiofolder`), with a column `file_name`."""
    tables = []
    for file in _metadata(folder):
        rows = list(read_table(file))
        if "file_name" in rows[0][1]:
            if wrong := [place for place, row in rows if not row.get("file_name")]:
                raise ValueError(f"{wrong[0]} has no file_name.")
            tables.append((file.parent.absolute(), [row for _, row in rows]))
    return tables


def _folder_collection(
    folder: Path, kind: str | None, tables: list[tuple[Path, list[dict[str, Any]]]], on_error: str
) -> Collection:
    texts = {root / str(row["file_name"]): row.get("text") for root, rows in tables for row in rows}
    if kind is None:
        suffixes = {file.suffix.lower() for file in texts or walk_files(folder)}
        kinds = [name for name in COLUMNS if suffixes & set(_SUFFIXES[name])]
        if len(kinds) != 1:
            what = "images and audio files: choose with kind (--kind)" if kinds else "no image and no audio file"
            raise ValueError(f"The folder {folder} holds {what}.")
        kind = kinds[0]
    files = [file for file in texts if file.suffix.lower() in _SUFFIXES[kind]]
    files = files or list_files([str(folder)], _SUFFIXES[kind], COLUMNS[kind])
    other = [file for file in files if os.fsencode(file).decode("utf-8", "replace") != str(file)]
    wrong = [f"{os.fsencode(file)!r}: the name of this file is not UTF-8; rename it." for file in other]
    if wrong and on_error == "raise":
        raise ValueError(wrong[0])
    files = [file for file in files if file not in other]
    rows = [{COLUMNS[kind]: {"path": str(file), "bytes": None}, "text": texts.get(file)} for file in files]
    ids = [file.relative_to(folder).as_posix() for file in files]
    return Collection(kind, {"folder": str(folder)}, ids, rows, wrong)


def _dataset_collection(
    source: str | Path,
    kind: str,
    wanted: Sequence[str] | None,
    data_dir: str | Path | None,
    on_error: str,
    options: dict[str, Any],
) -> Collection:
    findings = Findings(raises=on_error == "raise")
    splits: dict[str, datasets.Dataset] = {}
    absent = []
    possible = splits_of(source) if isinstance(source, Path) and not _metadata(source) else SPLITS
    for split in possible if wanted is None else wanted:
        try:
            splits[split] = _load(source, split, kind, data_dir, findings, options)
        except NoSuchSplitError as error:
            if wanted is not None:
                raise
            absent.append(str(error))
    if not splits:
        raise NoSuchSplitError(f"{absent[0]} Name its own with split (--split).")
    facts = {
        "data": str(source.resolve()) if isinstance(source, Path) else source,
        "splits": list(splits),
        "data_dir": None if data_dir is None else str(Path(data_dir).expanduser().resolve()),
        "options": json.loads(json.dumps(options)),
    }
    ids, places, start = [], [], 0
    for split, data in splits.items():
        prefix = f"{split}/" if len(splits) > 1 else ""  # ids of images are a split's own
        seen = set()
        for row, name in enumerate(data["image_id" if kind == "images" else "caption_id"]):
            if kind == "images" and name in seen:  # another caption of it
                continue
            seen.add(name)
            ids.append(f"{prefix}{name}")
            places.append(start + row)
        start += len(data)
    rows = datasets.concatenate_datasets([data.select_columns([COLUMNS[kind], "text"]) for data in splits.values()])
    return Collection(kind, facts, ids, rows.select(places), findings.broken)


def _load(
    source: str | Path,
    split: str,
    kind: str,
    data_dir: str | Path | None,
    findings: Findings,
    options: dict[str, Any],
) -> datasets.Dataset:
    alone = is_hub_repository(source) or (isinstance(source, Path) and not _metadata(source))
    if alone and data_dir is None:  # one column of images or audio is enough
        return load_mapped(source, split, media=(COLUMNS[kind],), **options)
    return read_dataset(source, split, data_dir, findings, **options)
