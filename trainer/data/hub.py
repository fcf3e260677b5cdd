"""Data sets of the Hub, saved data sets and parquet files, with their columns mapped to the common ones."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.compute

from ...modeling_speechclip_plus.input_paths import AUDIO_SUFFIXES, IMAGE_SUFFIXES
from .schema import FEATURES, SPLITS, NoSuchSplitError, as_string, stable_id

_MEDIA = ("audio", "image")
_SAVED = ("dataset_dict.json", "state.json")
_BATCH = 100  # rows whose images are in memory at a time


def is_data_path(path: Path) -> bool:
    """Whether a path is a parquet file, a folder of them, or a data set saved by `datasets`.

    A folder of images or audio files is none because of a stray parquet file, unless that is named after a split.
    """
    if path.is_file():
        return path.suffix == ".parquet"
    if _is_saved(path):
        return True
    names = set(map(_split_of_file, _all_parquet_files(path)))
    suffixes = (*AUDIO_SUFFIXES, *IMAGE_SUFFIXES)
    return bool(names) and (
        not names.isdisjoint(SPLITS) or not any(file.suffix.lower() in suffixes for file in path.rglob("*"))
    )


def splits_of(path: Path) -> list[str]:
    """The splits of what `is_data_path` accepts: a saved data set's own, or how parquet files' names begin."""
    if _is_saved(path):
        data = datasets.load_from_disk(str(path))
        return list(data) if isinstance(data, datasets.DatasetDict) else [_split_of(data)]
    names = dict.fromkeys(_split_of_file(file) for file in _all_parquet_files(path))
    return sorted(names, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name))


def load_mapped(
    source: str | Path,
    split: str,
    *,
    columns: Mapping[str, str] | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    cache_dir: str | None = None,
    streaming: bool = False,
    media: Sequence[str] = ("audio", "image"),
    allow_null: bool = False,
) -> datasets.Dataset | datasets.IterableDataset:
    """Load a split of a data set that `datasets` reads, and give it the common columns.

    Args:
        source: A repository on the Hub, a parquet file, a folder with parquet files named after their split
            (`train-00000-of-00001.parquet`), or a folder written by `save_to_disk`.
        split: The split's name there.
        columns: The source's name of each column that has another name there, for instance `{"audio": "sound"}`.
            Without an `image_id` it follows from the image's bytes (or, if only its path is stored, from that; or
            without images, from the row); ids that are strings become numbers.
        config_name: The configuration, for repositories that have several.
        revision: The repository's revision.
        cache_dir: Where `datasets` keeps what it makes of it.
        streaming: Return an `IterableDataset`.
        media: Which of `audio` and `image` are wanted, and must be there.
        allow_null: Leave rows without a recording or an image to whoever reads them.

    Raises:
        ValueError: If there is no such split; if columns are missing, named twice or of a type that does not fit; if
            a row lacks its recording, its image or its image's id.
        OSError: If the source is not there.
    """
    path = Path(source).expanduser()
    if path.exists() and (config_name is not None or revision is not None):
        raise ValueError(f"{path} is on this machine: config_name and revision are for repositories on the Hub.")
    if _is_saved(path):
        data = _saved(path, split)
        data = shards(data) if streaming else data
    else:
        # By our own rule: that of `datasets` leaves parquet files of other names out where some are named by splits.
        local = {"data_files": {split: _parquet_files(path, split)}} if path.exists() else {}
        try:
            data = datasets.load_dataset(
                "parquet" if local else str(source),
                config_name,
                split=split,
                revision=revision,
                cache_dir=cache_dir,
                streaming=streaming,
                **local,
            )
        except ValueError as error:
            if re.match(r"(Unknown|Bad) split", str(error)):
                raise NoSuchSplitError(f"{source}: {error}") from error
            raise
    return _with_common_columns(data, str(source), split, dict(columns or {}), media, allow_null)


def shards(data: datasets.Dataset) -> datasets.IterableDataset:
    """Stream a data set, in as many parts as processes and workers are likely to share."""
    return data.to_iterable_dataset(num_shards=min(len(data), 64))


def _saved(path: Path, split: str) -> datasets.Dataset:
    data = datasets.load_from_disk(str(path))
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise NoSuchSplitError(f"{path} has no split {split!r}: it has {', '.join(map(str, data))}.")
        return data[split]
    if (own := _split_of(data)) != split:
        raise NoSuchSplitError(f"{path} has no split {split!r}: it has {own}.")
    return data


def _split_of(data: datasets.Dataset) -> str:
    return str(data.split or "train")


def _is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in _SAVED)


def _split_of_file(file: Path) -> str:
    return file.stem.split("-")[0]


def _all_parquet_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob("*.parquet"))


def _parquet_files(path: Path, split: str) -> list[str]:
    files = _all_parquet_files(path)
    chosen = [str(file) for file in files if _split_of_file(file) == split]
    if not chosen and len(files) == 1 and split == "train":
        return [str(files[0])]  # a single file of any name: its rows are for training
    if not chosen:
        there = ", ".join(file.name for file in files[:10])
        raise NoSuchSplitError(f"{path} has no parquet file whose name begins with the split {split!r}, but {there}.")
    return chosen


def _with_common_columns(
    data: Any, source: str, split: str, columns: dict[str, str], media: Sequence[str], allow_null: bool
) -> Any:
    if unknown := sorted(set(columns) - set(FEATURES)):
        raise ValueError(
            f"columns names {', '.join(unknown)}, which no data set has here: give its own name for any of "
            f'{", ".join(FEATURES)}, as in columns={{"audio": "sound"}}.'
        )
    names = data.column_names
    if data.features is None or names is None:
        raise ValueError(f"{source} does not say what its columns are: leave streaming out.")
    features = datasets.Features(
        {name: kind for name, kind in FEATURES.items() if name in media or name not in _MEDIA}
    )
    wanted = {name: columns.get(name, name) for name in features}
    absent = [name for name, own in wanted.items() if own not in names]
    if wrong := [name for name in absent if name in columns or name in media]:
        raise ValueError(
            f"{source} has no column {', '.join(repr(wanted[name]) for name in wrong)}; its columns are "
            f"{', '.join(names)}. Say which is {' and '.join(wrong)} with columns={{{wrong[0]!r}: ...}}."
        )
    taken = {name: own for name, own in wanted.items() if name not in absent}
    if len(set(taken.values())) < len(taken):
        raise ValueError(f"A column of {source} stands for two: {taken}. Each can have one meaning only.")
    data = data.select_columns(list(taken.values()))
    for name in media:
        if data.features[taken[name]] != features[name]:
            data = data.cast_column(taken[name], features[name])
    arguments = {"source": source, "taken": taken, "split": split, "features": features, "allow_null": allow_null}
    # As tables: as rows, `datasets` would encode the recordings again, for which it needs torchcodec.
    tables = data.with_format("arrow")
    if isinstance(data, datasets.IterableDataset):
        made = tables.map(_complete, batched=True, with_indices=True, features=features, fn_kwargs=arguments)
        return made.with_format(None)
    # Recordings and images stay in the files where they are; the other columns are made anew, in memory.
    schema = datasets.Features({name: kind for name, kind in features.items() if name not in media}).arrow_schema
    parts = [schema.empty_table()]
    for start, table in zip(range(0, len(data), _BATCH), tables.iter(_BATCH), strict=True):
        complete = _complete(table, range(start, start + len(table)), **arguments)
        parts.append(complete.select(schema.names).cast(schema))
    data = data.rename_columns({own: name for name, own in taken.items() if own != name}).select_columns(list(media))
    data = datasets.concatenate_datasets(
        [data, datasets.Dataset(pyarrow.concat_tables(parts))], axis=1, split=data.split
    )
    return data.select_columns(list(features))


def _complete(
    table: Any,
    indices: Sequence[int],
    source: str,
    taken: dict[str, str],
    split: str,
    features: datasets.Features,
    allow_null: bool,
) -> Any:
    """Give a part of a data set, a `pyarrow.Table`, the common columns."""
    table = table.select(list(taken.values())).rename_columns(list(taken))
    places = [f"{source}, row {index + 1}" for index in indices]
    media = [name for name in _MEDIA if name in taken]
    for name in media:
        inside = [pyarrow.compute.struct_field(table[name].combine_chunks(), part) for part in ("bytes", "path")]
        empty = pyarrow.compute.and_(*map(pyarrow.compute.is_null, inside)).to_pylist()
        if any(empty) and not allow_null:
            raise ValueError(f"{places[empty.index(True)]}: there is no {name}.")
    columns: dict[str, Any] = {name: table[name] for name in media}
    if "image_id" in taken:
        ids = table["image_id"].to_pylist()
        if None in ids:
            raise ValueError(f"{places[ids.index(None)]}: image_id is null.")
        columns["image_id"] = [stable_id(value) if isinstance(value, str) else value for value in ids]
    elif "image" in taken:
        columns["image_id"] = [_image_id(image or {}) for image in table["image"].to_pylist()]
    else:
        columns["image_id"] = list(indices)
    for name in ("text", "caption_id", "speaker"):
        if name in taken:
            values = zip(table[name].to_pylist(), places, strict=True)
            columns[name] = [as_string(value, name, place) for value, place in values]
        else:
            columns[name] = [f"{split}-{index}" if name == "caption_id" else "" for index in indices]
    return pyarrow.table(columns).cast(features.arrow_schema)


def _image_id(image: Mapping[str, Any]) -> int:
    content = image.get("bytes") if image.get("bytes") is not None else image.get("path")
    return stable_id(content or "")
