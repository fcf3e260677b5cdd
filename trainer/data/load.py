"""Loader of data sets of recordings and images by name, all with the columns of `schema.FEATURES`."""

import difflib
import inspect
import logging
import re
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import datasets

from ..card_data import given_name
from ..spoken_scenes.dataset import build_spoken_scenes
from .corpora import load_flickr8k, load_spokencoco
from .folder import METADATA_FILES, load_folder, metadata_file
from .hub import is_data_path, load_mapped, shards
from .schema import Findings, keep_readable

logger = logging.getLogger(__name__)


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
            and image is read now, the same ones in every process, and those that cannot be used are left out and
            listed in the log.
        **options: Passed on to the data set: `columns` of data sets of the Hub and of folders (see `load_mapped`),
            `validation_share` of folders (see `load_folder`), `num_scenes` of `spoken_scenes` (see
            `build_spoken_scenes`).

    Returns:
        A data set with the columns `audio` (`datasets.Audio` at 16 kHz, not decoded), `image` (`datasets.Image`, not
        decoded), `image_id` (int64, the same for all captions of an image), `text`, `caption_id` and `speaker`
        (strings, empty where unknown).

    Raises:
        ValueError: If the name, `on_error` or the split is unknown.
        FileNotFoundError: If a folder or file is missing; for the published corpora it says what to download.
        TypeError: If the data set does not have one of the options.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r}: choose raise or skip.")
    findings = Findings(raises=on_error == "raise")
    made = read_dataset(
        name_or_path, split, data_dir, findings, streaming=streaming, read_all=on_error == "skip", **options
    )
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
    **options: Any,
) -> datasets.Dataset | datasets.IterableDataset:
    """Load as `load_speech_image_dataset` does, with what was left out in `findings` instead of in the log."""
    name = str(name_or_path)
    path = Path(name_or_path).expanduser()
    from_hub = is_hub_repository(name_or_path)
    if name not in DATASETS and (path.exists() or from_hub) and data_dir is not None:
        raise ValueError(f"Both a folder ({name}) and data_dir={str(data_dir)!r} were given: leave one out.")
    if from_hub or (name not in DATASETS and path.exists() and not _is_folder_data(path)):
        if streaming and from_hub and read_all:
            raise ValueError('on_error="skip" reads everything first: leave streaming out, or keep on_error="raise".')
        _check_options(name, load_mapped, options)
        # What is on this machine is read as it is and streamed afterwards, if it has to be looked through before.
        source = path if path.exists() else name
        made = load_mapped(source, split, streaming=streaming and not read_all, allow_null=read_all, **options)
    elif name in DATASETS:
        _check_options(name, DATASETS[name], options)
        made = DATASETS[name](split, data_dir, findings, **options)
    elif path.is_dir():
        _check_options(name, load_folder, options)
        made = load_folder(split, path, findings, **options)
    else:
        nearest = difflib.get_close_matches(name, DATASETS, n=1)
        raise ValueError(
            f"There is no data set {name!r} and no folder of that name{_did_you_mean(nearest)}: choose one of "
            f"{', '.join(sorted(DATASETS))}, or give the path of a folder with a {' or '.join(METADATA_FILES)}, or "
            "owner/name of one on the Hub."
        )
    if read_all:
        made = keep_readable(made, findings)
    made.info.dataset_name = given_name(name, data_dir)  # for cards
    return shards(made) if streaming and isinstance(made, datasets.Dataset) else made


def is_hub_repository(name_or_path: str | Path) -> bool:
    """Whether this can only be the name of a repository on the Hub."""
    name = str(name_or_path)
    here = name in DATASETS or Path(name).expanduser().exists()
    return not here and re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def _is_folder_data(path: Path) -> bool:
    divided = any(file.name in METADATA_FILES for file in path.glob("*/metadata.*"))
    return path.is_dir() and (metadata_file(path) is not None or divided or not is_data_path(path))


def _check_options(name: str, loader: Callable[..., Any], options: Mapping[str, Any]) -> None:
    own = {"split", "source", "data_dir", "findings", "streaming", "media", "allow_null"}
    known = [option for option in inspect.signature(loader).parameters if option not in own]
    for option in options:
        if option not in known:
            nearest = _did_you_mean(difflib.get_close_matches(option, known, n=1))
            there = f"it has {', '.join(known)}" if known else "it has none"
            raise TypeError(f"The data set {name!r} has no option {option!r}{nearest}: {there}.")
    if not isinstance(columns := options.get("columns") or {}, Mapping):
        raise TypeError(f'columns={columns!r}: expected a mapping such as {{"audio": "sound"}}.')


def _did_you_mean(nearest: list[str]) -> str:
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
