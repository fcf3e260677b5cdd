"""Speech and image data sets by name, all with the same columns.

``audio`` (``datasets.Audio`` at 16 kHz, not decoded), ``image`` (``datasets.Image``, not decoded), ``image_id``
(int64, the same for all captions of a picture), ``text``, ``caption_id``, ``speaker`` (strings, empty where unknown).
"""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets

from ..card_data import given_name
from ..spoken_scenes.dataset import build_spoken_scenes
from .flickr8k import load_flickr8k
from .folder import METADATA_FILES, load_folder, metadata_file
from .hub import is_data_path, load_mapped, shards
from .schema import Findings, keep_readable
from .spokencoco import load_spokencoco
from .stamps import load_stamps

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
    """Load one split of a data set of spoken captions and pictures.

    Nothing is decoded here: rows hold paths or bytes, which the collator reads with soundfile and Pillow. What the
    corpus lacks is counted in one line of the log.

    Args:
        name_or_path: "flickr8k", "spokencoco", "stamps", "folder" (files of your own, in ``data_dir``),
            "spoken_scenes" (made on the spot); or the path of such a folder, of parquet files or of a saved data set;
            or a repository on the Hub (``owner/name``).
        split: "train", "validation" or "test".
        data_dir: where the files are, for data sets that are read from files.
        streaming: return an ``IterableDataset`` of the same rows, in up to 64 shards for processes and workers to
            share. A repository on the Hub is then not downloaded first.
        on_error: "raise": a missing file is an error now, a broken one when it is first used. "skip": every recording
            and picture is read now, the same ones in every process, and those that cannot be used are left out and
            listed in the log.
        **options: passed on to the data set: ``languages`` and ``voices`` of ``stamps`` (see ``load_stamps``),
            ``columns`` of data sets of the Hub (see ``load_mapped``), ``num_scenes`` of ``spoken_scenes`` (see
            ``build_spoken_scenes``).

    Returns:
        A data set with the columns named above.

    Raises:
        ValueError: unknown name or ``on_error``, or a split that the data set does not have.
        FileNotFoundError: a folder or file is missing; for the published corpora it says what to download.
        TypeError: an option that the data set does not know.
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
        # What is on this machine is read as it is and streamed afterwards, if it has to be looked through before.
        made = load_mapped(path if path.exists() else name, split, streaming=streaming and not read_all, **options)
    elif name in DATASETS:
        made = DATASETS[name](split, data_dir, findings, **options)
    elif path.is_dir():
        made = load_folder(split, path, findings, **options)
    else:
        raise ValueError(
            f"There is no data set {name!r} and no folder of that name: choose one of {', '.join(sorted(DATASETS))}, "
            f"or give the path of a folder with a {' or '.join(METADATA_FILES)}, or owner/name of one on the Hub."
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
    "stamps": load_stamps,
}
