"""What data sets tell of themselves, for cards."""

import re
from pathlib import Path
from typing import Any

import datasets

from ..hub_cards.model_card import DATASETS, SplitSize
from ..modeling_speechclip_plus.audio_utils import SAMPLING_RATE
from .sampler import utterance_lengths

_LANGUAGE = re.compile(r"[a-z]{2,3}(_[A-Z]{2})?")


def given_name(name: str | Path, data_dir: str | Path | None) -> str:
    """What to call a data set: a corpus or a repository by its name, a folder without what is above it."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) and not Path(name).expanduser().exists():
        return str(name)
    if str(name) in DATASETS:
        return str(name)
    own = Path(data_dir if str(name) == "folder" and data_dir is not None else name).expanduser().resolve().name
    # A folder is no corpus because it is called like one: that would lend it the corpus's licence.
    return f"{own} (folder)" if own in DATASETS else own


def dataset_name(data: Any) -> str | None:
    """What a data set was loaded by."""
    return getattr(getattr(data, "info", None), "dataset_name", None)


def has_audio(data: Any) -> bool:
    """Whether rows hold recordings that can be read again."""
    return isinstance(data, datasets.Dataset) and "audio" in data.column_names


def spoken_languages(name: str, data: Any) -> tuple[str, ...]:
    """BCP 47 codes of a data set's speech, as far as its name or its speakers, if called by languages, tell them."""
    if name in DATASETS and DATASETS[name].languages:
        return DATASETS[name].languages
    if not isinstance(data, datasets.Dataset) or "speaker" not in data.column_names:
        return ()
    speakers = set(data["speaker"])
    if not all(speaker and _LANGUAGE.fullmatch(speaker) for speaker in speakers):
        return ()
    return tuple(sorted(speaker.replace("_", "-") for speaker in speakers))


def split_size(data: Any) -> SplitSize:
    """Count a split; what it does not tell without reading it all stays open."""
    columns = getattr(data, "column_names", None) or list(getattr(data, "columns", ()))
    if not hasattr(data, "__len__"):
        return SplitSize()

    def different(column: str) -> int | None:
        if column not in columns:
            return None
        values = data[column] if isinstance(data, datasets.Dataset) else data.columns[column]
        return len(set(values) - {"", None}) or None

    return SplitSize(rows=len(data), images=different("image_id"), speakers=different("speaker"), hours=_hours(data))


def _hours(data: Any) -> float | None:
    if not has_audio(data):
        return None
    try:
        return sum(utterance_lengths(data.select_columns(["audio"])["audio"])) / SAMPLING_RATE / 3600
    except ValueError:  # a broken file: whoever reads it says so
        return None
