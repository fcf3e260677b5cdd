"""What an index is made of: the pictures, or the recordings, of a folder or of a data set."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from ...modeling_speechclip_plus.input_paths import AUDIO_SUFFIXES, IMAGE_SUFFIXES, list_files
from ..data.folder import METADATA_FILES
from ..data.hub import is_data_path, load_mapped, splits_of
from ..data.load import DATASETS, is_hub_repository, read_dataset
from ..data.schema import Findings, NoSuchSplitError
from ..spoken_scenes.scenes import SPLITS

_COLUMNS = {"images": "image", "recordings": "audio"}
_SUFFIXES = {"images": IMAGE_SUFFIXES, "recordings": AUDIO_SUFFIXES}
_NAMES = {"images": "picture", "recordings": "recording"}


@dataclass(frozen=True)
class GalleryItem:
    """A picture or a recording.

    Attributes:
        id: what tells it from the others.
        source: `{"path": ..., "bytes": ...}`, one of them None; with bytes, the path is only a name.
        text: what is said or shown, "" if unknown.
    """

    id: str
    source: dict[str, Any]
    text: str = ""


class Gallery:
    """Items in a fixed order, read one at a time.

    Attributes:
        kind: "images" or "recordings".
        facts: where they came from, as plain values; `missing`: sentences about files that should be there.
    """

    def __init__(self, kind: str, facts: dict[str, Any]) -> None:
        self.kind, self.facts = kind, facts

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, number: int) -> GalleryItem:
        raise NotImplementedError

    def ids(self) -> Iterable[str]:
        """The ids, in order, without reading the items."""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """What tells this gallery from another, or from what it was before something was added."""
        digest = hashlib.blake2b(digest_size=16)
        for name in self.ids():
            digest.update(f"{name}\0".encode("utf-8", "surrogateescape"))
        return {**self.facts, "items": len(self), "ids": digest.hexdigest()}


class FileGallery(Gallery):
    """The files of a folder and of the folders in it, in order of their paths."""

    def __init__(self, kind: str, root: Path, files: Sequence[Path]) -> None:
        super().__init__(kind, {"folder": str(root)})
        self.root, self.files = root, files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> GalleryItem:
        file = self.files[number]
        return GalleryItem(file.relative_to(self.root).as_posix(), {"path": str(file), "bytes": None})

    def ids(self) -> Iterable[str]:
        """The files' paths from the folder."""
        return (file.relative_to(self.root).as_posix() for file in self.files)


class DatasetGallery(Gallery):
    """The pictures of a data set, each once, or its recordings."""

    def __init__(self, kind: str, facts: dict[str, Any], splits: dict[str, datasets.Dataset]) -> None:
        super().__init__(kind, facts)
        column = _COLUMNS[kind]
        self._rows = datasets.concatenate_datasets([data.select_columns([column, "text"]) for data in splits.values()])
        self._column = column
        self._places: list[int] = []
        self._ids: list[str] = []
        start = 0
        for split, data in splits.items():
            # Ids of pictures are the split's own; where there are several splits, the id says which.
            prefix = f"{split}/" if len(splits) > 1 else ""
            seen: set[Any] = set()
            for row, name in enumerate(data["image_id" if kind == "images" else "caption_id"]):
                if kind == "images" and name in seen:
                    continue
                seen.add(name)
                self._places.append(start + row)
                self._ids.append(f"{prefix}{name}")
            start += len(data)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> GalleryItem:
        row = self._rows[self._places[number]]
        return GalleryItem(self._ids[number], dict(row[self._column]), row["text"] or "")

    def ids(self) -> Iterable[str]:
        """Ids of the pictures, or of the recordings."""
        return self._ids


def open_gallery(
    source: str | Path,
    kind: str | None = None,
    splits: Sequence[str] | None = None,
    data_dir: str | Path | None = None,
    on_error: str = "raise",
    **options: Any,
) -> Gallery:
    """Open what shall be indexed.

    Args:
        source: a folder of pictures or recordings (with all folders in it); a data set by its name, path or repository
            on the Hub (see `load_speech_image_dataset`); parquet files or a saved data set, which may have the one
            column of `audio` and `image` alone.
        kind: "images" or "recordings"; by default what a folder holds, and the pictures of a data set.
        splits: of a data set; by default all there are.
        data_dir: where a data set's files are.
        on_error: "raise": a file that a data set names and that is not there is an error. "skip": it is listed.
        **options: of the data set.

    Raises:
        ValueError: for a folder that holds both, nothing, or none of that kind; and as `load_speech_image_dataset`.
        FileNotFoundError: if there is nothing of that name.
    """
    if kind is not None and kind not in _COLUMNS:
        raise ValueError(f"kind={kind!r}: choose {' or '.join(_COLUMNS)}.")
    path = Path(source).expanduser()
    if not path.exists() and str(source) not in DATASETS and not is_hub_repository(str(source)):
        raise FileNotFoundError(
            f"There is no folder {source}: give a folder of pictures or recordings, parquet files, owner/name of a "
            f"data set on the Hub, or one of {', '.join(sorted(DATASETS))}."
        )
    if str(source) in DATASETS or not path.exists():
        return _dataset_gallery(str(source), kind or "images", splits, data_dir, on_error, options)
    if path.is_dir() and not _describes_pairs(path) and not is_data_path(path):
        if splits is not None or data_dir is not None or options:
            raise ValueError(f"{path} is a folder of files: splits, data_dir and options are for data sets.")
        return _file_gallery(path.resolve(), kind)
    if path.is_file() and not is_data_path(path):
        raise ValueError(f"{path} is a file; expected a folder, parquet files, or a data set.")
    return _dataset_gallery(path, kind or "images", splits, data_dir, on_error, options)


def _describes_pairs(folder: Path) -> bool:
    tables = [*folder.glob("metadata.*"), *folder.glob("*/metadata.*")]
    return any(file.name in METADATA_FILES for file in tables)


def _file_gallery(folder: Path, kind: str | None) -> FileGallery:
    if kind is None:
        suffixes = {file.suffix.lower() for file in folder.rglob("*")}
        found = [name for name in _COLUMNS if suffixes & set(_SUFFIXES[name])]
        if len(found) != 1:
            what = "pictures and recordings: choose with kind (--kind)" if found else "no picture and no recording"
            raise ValueError(f"The folder {folder} holds {what}.")
        kind = found[0]
    return FileGallery(kind, folder, list_files([str(folder)], _SUFFIXES[kind], _NAMES[kind]))


def _dataset_gallery(
    source: str | Path,
    kind: str,
    wanted: Sequence[str] | None,
    data_dir: str | Path | None,
    on_error: str,
    options: dict[str, Any],
) -> DatasetGallery:
    findings = Findings(raises=on_error == "raise")
    splits: dict[str, datasets.Dataset] = {}
    absent = []
    possible = splits_of(source) if isinstance(source, Path) and not _describes_pairs(source) else SPLITS
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
        "missing": findings.broken,
    }
    return DatasetGallery(kind, facts, splits)


def _load(
    source: str | Path,
    split: str,
    kind: str,
    data_dir: str | Path | None,
    findings: Findings,
    options: dict[str, Any],
) -> Any:
    alone = is_hub_repository(source) or (isinstance(source, Path) and not _describes_pairs(source))
    if alone and data_dir is None:
        # A gallery need not be of pairs: pictures alone, or recordings alone, are enough.
        return load_mapped(source, split, media=(_COLUMNS[kind],), **options)
    return read_dataset(source, split, data_dir, findings, **options)
