"""Any data set of the Hub, saved data set or parquet file, with its columns mapped to the common ones."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from ..spoken_scenes.dataset import FEATURES
from ..spoken_scenes.scenes import SPLITS
from .schema import AUDIO, NoSuchSplitError, stable_id

_MEDIA = ("audio", "image")
_SAVED = ("dataset_dict.json", "state.json")


def is_data_path(path: Path) -> bool:
    """Whether a path holds parquet files or a data set saved by `datasets`."""
    if path.is_file():
        return path.suffix == ".parquet"
    return any((path / name).is_file() for name in _SAVED) or next(path.rglob("*.parquet"), None) is not None


def splits_of(path: Path) -> list[str]:
    """The splits of what `is_data_path` accepts: a saved data set's own, or how parquet files' names begin."""
    if any((path / name).is_file() for name in _SAVED):
        data = datasets.load_from_disk(str(path))
        return list(data) if isinstance(data, datasets.DatasetDict) else [_split_of(data)]
    names = dict.fromkeys(file.stem.split("-")[0] for file in _all_parquet_files(path))
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
) -> datasets.Dataset | datasets.IterableDataset:
    """Load a split of a data set that `datasets` reads, and give it the common columns.

    Args:
        source: a repository on the Hub, a parquet file, a folder with parquet files named after their split
            (``train-00000-of-00001.parquet``), or a folder written by ``save_to_disk``.
        split: the split's name there.
        columns: the source's name of each column that has another name there, for instance ``{"audio": "sound"}``.
            Without an ``image_id`` it follows from the picture's bytes (or, if only its path is stored, from that; or
            without pictures, from the row); ids that are strings become numbers.
        config_name: the configuration, for repositories that have several.
        revision: the repository's revision.
        cache_dir: where `datasets` keeps what it makes of it.
        streaming: return an `IterableDataset`.
        media: which of ``audio`` and ``image`` are wanted, and must be there.

    Raises:
        ValueError: no such split, or columns that are missing, named twice or of a type that does not fit.
        OSError: the source is not there.
    """
    path = Path(source).expanduser()
    if not path.exists():
        try:
            data = datasets.load_dataset(
                str(source), config_name, split=split, revision=revision, cache_dir=cache_dir, streaming=streaming
            )
        except ValueError as error:
            if re.match(r"(Unknown|Bad) split", str(error)):
                raise NoSuchSplitError(f"{source}: {error}") from error
            raise
    elif config_name is not None or revision is not None:
        raise ValueError(f"{path} is on this machine: config_name and revision are for repositories on the Hub.")
    elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        data = _saved(path, split)
        data = shards(data) if streaming else data
    else:
        data = datasets.load_dataset(
            "parquet",
            data_files={split: [str(file) for file in _parquet_files(path, split)]},
            split=split,
            cache_dir=cache_dir,
            streaming=streaming,
        )
    return _with_common_columns(data, str(source), split, dict(columns or {}), media)


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


def _all_parquet_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob("*.parquet"))


def _parquet_files(path: Path, split: str) -> list[Path]:
    files = _all_parquet_files(path)
    chosen = [file for file in files if file.stem.split("-")[0] == split]
    if chosen or (len(files) == 1 and split == "train"):
        return chosen or files  # a single file of any name: its rows are for training
    raise NoSuchSplitError(
        f"{path} has no parquet files of the split {split!r}: their names begin with the split, and there "
        f"{'is' if len(files) == 1 else 'are'} {', '.join(file.name for file in files[:10])}."
    )


def _with_common_columns(data: Any, source: str, split: str, columns: dict[str, str], media: Sequence[str]) -> Any:
    features = datasets.Features(
        {name: kind for name, kind in {**FEATURES, "audio": AUDIO}.items() if name in media or name not in _MEDIA}
    )
    if unknown := sorted(set(columns) - set(FEATURES)):
        raise ValueError(f"columns maps {', '.join(unknown)}; there are only {', '.join(FEATURES)} to be mapped to.")
    columns = {name: own for name, own in columns.items() if name in features}
    names = data.column_names
    if data.features is None or names is None:
        raise ValueError(f"{source} does not say what its columns are: leave streaming out.")
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
    if isinstance(data, datasets.IterableDataset):
        # As tables: as rows, `datasets` would encode the recordings again, for which it needs torchcodec.
        arguments = {"taken": taken, "split": split, "features": features}
        data = data.with_format("arrow").map(
            _complete,
            batched=True,
            with_indices=True,
            features=features,
            fn_kwargs=arguments,
        )
        return data.with_format(None)
    data = data.rename_columns({own: name for name, own in taken.items() if own != name})
    if "image_id" not in taken:
        pictures = data["image"] if "image" in taken else None
        numbers = list(range(len(data))) if pictures is None else [_picture_id(image) for image in pictures]
        data = data.add_column("image_id", numbers)
    elif data.features["image_id"].dtype == "string":
        ids = [stable_id(value) for value in data["image_id"]]
        data = data.remove_columns("image_id").add_column("image_id", ids)
    if data.features["image_id"] != FEATURES["image_id"]:
        data = data.cast_column("image_id", FEATURES["image_id"])
    for name in ("text", "caption_id", "speaker"):
        values = data[name][:] if name in taken else _default(name, split, range(len(data)))
        if name in taken and not all(isinstance(value, str) for value in values):
            data, values = data.remove_columns(name), _strings(values)
        if name not in data.column_names:
            data = data.add_column(name, values)
    return data.select_columns(list(features))


def _complete(table: Any, indices: list[int], taken: dict[str, str], split: str, features: datasets.Features) -> Any:
    """Give a part of a stream, a `pyarrow.Table`, the common columns."""
    import pyarrow

    table = table.select(list(taken.values())).rename_columns(list(taken))

    strings = {
        name: _strings(table[name].to_pylist()) if name in taken else _default(name, split, indices)
        for name in ("text", "caption_id", "speaker")
    }
    if "image_id" in taken:
        image_ids = [stable_id(v) if isinstance(v, str) else v for v in table["image_id"].to_pylist()]
    elif "image" in taken:
        image_ids = [_picture_id(image) for image in table["image"].to_pylist()]
    else:
        image_ids = indices
    columns = {name: table[name] for name in _MEDIA if name in taken} | {"image_id": image_ids, **strings}
    return pyarrow.table(columns).cast(features.arrow_schema)


def _strings(values: Iterable[Any]) -> list[str]:
    return ["" if value is None else str(value) for value in values]


def _default(name: str, split: str, indices: Iterable[int]) -> list[str]:
    return [f"{split}-{index}" if name == "caption_id" else "" for index in indices]


def _picture_id(image: Mapping[str, Any]) -> int:
    return stable_id(image["bytes"] if image.get("bytes") is not None else image["path"])
