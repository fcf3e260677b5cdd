"""Loader of data sets of recordings and images, all with the columns of `schema.FEATURES`."""

import difflib
import inspect
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.compute

from ..card_data import given_name
from ..spoken_scenes.dataset import build_spoken_scenes
from .corpora import load_flickr8k, load_spokencoco
from .folder import METADATA_FILES, load_folder, metadata_tables
from .schema import (
    AUDIO_SUFFIXES,
    FEATURES,
    IMAGE_SUFFIXES,
    SPLITS,
    Findings,
    NoSuchSplitError,
    as_string,
    check_columns,
    readable_rows,
    some,
    stable_id,
)

logger = logging.getLogger(__name__)

_MEDIA = ("audio", "image")
_BATCH = 100  # rows whose images are in memory at a time


def load_speech_image_dataset(
    name_or_path: str | Path,
    split: str = "train",
    data_dir: str | Path | None = None,
    *,
    streaming: bool = False,
    on_error: str = "raise",
    **options: Any,
) -> datasets.Dataset | datasets.IterableDataset:
    """Load one split of a data set of spoken captions and images.

    Nothing is decoded here: rows hold paths or bytes, which the collator reads with soundfile and Pillow. What the
    corpus lacks is counted in one line of the log.

    Args:
        name_or_path: "flickr8k", "spokencoco", "folder" (files of your own, in `data_dir`), "spoken_scenes" (made on
            the spot); or the path of such a folder, of parquet files or of a saved data set; or a repository on the
            Hub (`owner/name`).
        split: "train", "validation" or "test".
        data_dir: Where the files are, for data sets that are read from files.
        streaming: Return an `IterableDataset` of the same rows, in up to 64 shards for processes and workers to
            share. A repository on the Hub is then not downloaded first.
        on_error: "raise": a missing file is an error now, a broken one when it is first used. "skip": every recording
            and image is read now, and those that cannot be used are left out and listed in the log.
        **options: Passed on to the data set: `columns` of data sets of the Hub and of folders (see `load_mapped`),
            `validation_share` of folders (see `load_folder`), `num_scenes` of `spoken_scenes` (see
            `build_spoken_scenes`).

    Returns:
        A data set with the columns `audio` (`datasets.Audio` at 16 kHz, not decoded), `image` (`datasets.Image`, not
        decoded), `image_id` (int64, the same for all captions of an image), `text`, `caption_id` and `speaker`
        (strings, empty where unknown).
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r}: choose raise or skip.")
    findings, read_all = Findings(raises=on_error == "raise"), on_error == "skip"
    made = read_dataset(name_or_path, split, data_dir, findings, streaming=streaming, read_all=read_all, **options)
    if lines := findings.lines(shown=5):
        logger.warning("%s, %s: %s", name_or_path, split, "; ".join(lines))
    return made


def read_dataset(
    name_or_path: str | Path,
    split: str,
    data_dir: str | Path | None,
    findings: Findings,
    *,
    streaming: bool = False,
    read_all: bool = False,
    media: Sequence[str] = _MEDIA,
    **options: Any,
) -> datasets.Dataset | datasets.IterableDataset:
    """Load as `load_speech_image_dataset` does, with what was left out in `findings` instead of in the log.

    Of `media`, the columns of recordings and images, one may be enough.
    """
    name = str(name_or_path)
    path = Path(name_or_path).expanduser()
    from_hub = is_hub_repository(name_or_path)
    if name not in DATASETS and (path.exists() or from_hub) and data_dir is not None:
        raise ValueError(f"Both {name} and data_dir={str(data_dir)!r} were given: leave one out.")
    if name in DATASETS:
        load = partial(DATASETS[name], split, data_dir, findings)
    elif path.exists() and _is_folder_data(path):
        load = partial(load_folder, split, path, findings)
    elif path.exists() or from_hub:
        if streaming and from_hub and read_all:
            raise ValueError('on_error="skip" reads everything first: leave streaming out, or keep on_error="raise".')
        # What is on this machine is read as it is and streamed afterwards, if it has to be looked through before.
        more: dict[str, Any] = {"streaming": streaming and not read_all, "media": media, "allow_null": read_all}
        load = partial(load_mapped, path if path.exists() else name, split, **more)
    else:
        raise ValueError(
            f"There is no data set {name!r} and no folder of that name{_did_you_mean(name, DATASETS)}: choose one of "
            f"{', '.join(sorted(DATASETS))}, or give the path of a folder with a {' or '.join(METADATA_FILES)}, or "
            "owner/name of one on the Hub."
        )
    _check_options(name, load.func, options)
    made = load(**options)
    if read_all:
        kept = readable_rows(made, findings)
        if not kept:
            raise ValueError(f"None of the {len(made)} rows can be read: {some(findings.broken, ' | ', 5)}")
        made = made if len(kept) == len(made) else made.select(kept)
    made.info.dataset_name = given_name(name, data_dir)  # for cards
    return _shards(made) if streaming and isinstance(made, datasets.Dataset) else made


def is_hub_repository(name_or_path: str | Path) -> bool:
    """Whether this can only be the name of a repository on the Hub."""
    name = str(name_or_path)
    here = name in DATASETS or Path(name).expanduser().exists()
    return not here and re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def is_data_path(path: Path) -> bool:
    """Whether a path is a parquet file, a folder of them, or a data set saved by `datasets`.

    A folder of images or audio files is none because of a stray parquet file, unless that is named after a split.
    """
    if path.is_file():
        return path.suffix == ".parquet"
    if _is_saved(path):
        return True
    names = splits_of(path).keys()
    suffixes = (*AUDIO_SUFFIXES, *IMAGE_SUFFIXES)
    return bool(names) and (
        not names.isdisjoint(SPLITS) or not any(file.suffix.lower() in suffixes for file in path.rglob("*"))
    )


def splits_of(path: Path) -> dict[str, Any]:
    """What `is_data_path` accepts, by split: data sets that were saved, or parquet files, whose names begin with it.

    The rows of a single file of any other name are for training.
    """
    if _is_saved(path):
        data = datasets.load_from_disk(str(path))
        return dict(data) if isinstance(data, datasets.DatasetDict) else {str(data.split or "train"): data}
    files: dict[str, Any] = {}
    for file in [path] if path.is_file() else sorted(path.rglob("*.parquet")):
        files.setdefault(file.stem.split("-")[0], []).append(str(file))
    if path.is_file() and files.keys().isdisjoint(SPLITS):
        return {"train": [str(path)]}
    known = {split: files.pop(split) for split in SPLITS if split in files}
    return known | files


def _is_folder_data(path: Path) -> bool:
    return path.is_dir() and (bool(metadata_tables(path)) or not is_data_path(path))


def _check_options(name: str, loader: Callable[..., Any], options: Mapping[str, Any]) -> None:
    own = {"split", "source", "data_dir", "findings", "streaming", "media", "allow_null"}
    known = [option for option in inspect.signature(loader).parameters if option not in own]
    for option in options:
        if option not in known:
            there = f"it has {', '.join(known)}" if known else "it has none"
            raise TypeError(f"The data set {name!r} has no option {option!r}{_did_you_mean(option, known)}: {there}.")


def _did_you_mean(name: str, known: Any) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


@wraps(build_spoken_scenes)  # whose options are this data set's
def _load_spoken_scenes(
    split: str, data_dir: str | Path | None, findings: Findings, **options: Any
) -> datasets.Dataset:
    if data_dir is not None:
        raise ValueError("The data set 'spoken_scenes' is made on the spot and reads no data_dir: leave it out.")
    return build_spoken_scenes(split, **options)


DATASETS: dict[str, Callable[..., datasets.Dataset]] = {
    "flickr8k": load_flickr8k,
    "folder": load_folder,
    "spoken_scenes": _load_spoken_scenes,
    "spokencoco": load_spokencoco,
}


# ---- what `datasets` reads


def load_mapped(
    source: str | Path,
    split: str,
    *,
    columns: Mapping[str, str] | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    cache_dir: str | None = None,
    streaming: bool = False,
    media: Sequence[str] = _MEDIA,
    allow_null: bool = False,
) -> datasets.Dataset | datasets.IterableDataset:
    """Load a split of a data set that `datasets` reads, and give it the common columns.

    `source` is a repository on the Hub, a parquet file, a folder with parquet files named after their split
    (`train-00000-of-00001.parquet`), or a folder written by `save_to_disk`. `columns` gives its name of each column
    that has another name there, for instance `{"audio": "sound"}`. Without an `image_id` it follows from the image's
    bytes (or, if only its path is stored, from that; or without images, from the row); ids that are strings become
    numbers. `media` are wanted, and must be there; with `allow_null` they may be missing in rows. The other arguments
    are those of `datasets.load_dataset`. What is missing or does not fit is a ValueError.
    """
    check_columns(columns or {}, FEATURES)
    path = Path(source).expanduser()
    more = {"split": split, "revision": revision, "cache_dir": cache_dir, "streaming": streaming}
    if path.exists():
        local = splits_of(path)
        if split not in local:
            raise NoSuchSplitError(f"{path} has no split {split!r}: it has {', '.join(local)}.")
        if isinstance(data := local[split], datasets.Dataset):
            data = _shards(data) if streaming else data
        else:
            # By our own rule: that of `datasets` leaves other parquet files out where some are named by splits.
            data = datasets.load_dataset("parquet", data_files={split: data}, **more)
    else:
        try:
            data = datasets.load_dataset(str(source), config_name, **more)
        except ValueError as error:
            if re.match(r"(Unknown|Bad) split", str(error)):
                raise NoSuchSplitError(f"{source}: {error}") from error
            raise
    return _with_common_columns(data, str(source), split, dict(columns or {}), media, allow_null)


def _shards(data: datasets.Dataset) -> datasets.IterableDataset:
    """Stream a data set, in as many parts as processes and workers are likely to share."""
    return data.to_iterable_dataset(num_shards=min(len(data), 64))


def _is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _with_common_columns(
    data: Any, source: str, split: str, columns: dict[str, str], media: Sequence[str], allow_null: bool
) -> Any:
    names = data.column_names
    if data.features is None or names is None:
        raise ValueError(f"{source} does not say what its columns are: leave streaming out.")
    features = datasets.Features(
        {name: kind for name, kind in FEATURES.items() if name in media or name not in _MEDIA}
    )
    taken = {name: own for name in features if (own := columns.get(name, name)) in names}
    if wrong := [name for name in features if name not in taken and (name in columns or name in media)]:
        raise ValueError(
            f"{source} has no column {', '.join(repr(columns.get(name, name)) for name in wrong)}; its columns are "
            f"{', '.join(names)}. Say which is {' and '.join(wrong)} with columns={{{wrong[0]!r}: ...}}."
        )
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
    others = datasets.Dataset(pyarrow.concat_tables(parts))
    data = data.rename_columns({own: name for name, own in taken.items() if own != name}).select_columns(list(media))
    data = datasets.concatenate_datasets([data, others], axis=1, split=data.split)
    return data.select_columns(list(features))


def _complete(
    table: Any,
    indices: Sequence[int],
    source: str,
    taken: Mapping[str, str],
    split: str,
    features: datasets.Features,
    allow_null: bool,
) -> Any:
    """Give a part of a data set, a `pyarrow.Table`, the common columns."""
    table = table.select(list(taken.values())).rename_columns(list(taken))
    places = [f"{source}, row {index + 1}" for index in indices]
    columns: dict[str, Any] = {name: table[name] for name in _MEDIA if name in features}
    for name, column in columns.items():
        inside = [pyarrow.compute.struct_field(column.combine_chunks(), part) for part in ("bytes", "path")]
        empty = pyarrow.compute.and_(*map(pyarrow.compute.is_null, inside)).to_pylist()
        if any(empty) and not allow_null:
            raise ValueError(f"{places[empty.index(True)]}: there is no {name}.")
    if "image_id" in taken:
        ids = table["image_id"].to_pylist()
        if None in ids:
            raise ValueError(f"{places[ids.index(None)]}: image_id is null.")
        columns["image_id"] = [stable_id(value) if isinstance(value, str) else value for value in ids]
    elif "image" in features:
        images = (image or {} for image in table["image"].to_pylist())
        columns["image_id"] = [stable_id(image.get("bytes") or image.get("path") or "") for image in images]
    else:
        columns["image_id"] = list(indices)
    for name in ("text", "caption_id", "speaker"):
        if name in taken:
            values = zip(table[name].to_pylist(), places, strict=True)
            columns[name] = [as_string(value, name, place) for value, place in values]
        else:
            columns[name] = [f"{split}-{index}" if name == "caption_id" else "" for index in indices]
    return pyarrow.table(columns).cast(features.arrow_schema)
