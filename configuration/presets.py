"""Presets: the published configurations by name, and tiny ones for a CPU."""

from __future__ import annotations

import difflib
import json
from importlib import resources
from typing import Any

import numpy as np


def preset_names() -> list[str]:
    """List the names that [`SpeechClipPlusConfig.from_preset`] knows, sorted."""
    folder = resources.files(__package__) / "presets"
    if not folder.is_dir():
        raise FileNotFoundError("The presets do not travel with a saved model: `pip install speechclip-plus`.")
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


def load_preset(name: str) -> dict[str, Any]:
    """Read a preset.

    Returns:
        `config`: keyword arguments of [`SpeechClipPlusConfig`]; `processor`: those of
        [`SpeechClipPlusProcessor.from_backbones`]; `training`: those of [`SpeechClipPlusTrainingArguments`];
        `dataset`: name of the data set that they are meant for.

    Raises:
        ValueError: If there is no such preset; the message names the nearest ones.
    """
    names = preset_names()
    if name not in names:
        near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.3) or names
        raise ValueError(f"There is no preset {name!r}. Near to it: {', '.join(near)}; all: {', '.join(names)}.")
    preset = json.loads((resources.files(__package__) / "presets" / f"{name}.json").read_text(encoding="utf-8"))
    keyword = preset["config"].get("keyword_config")
    if keyword and isinstance(keyword.get("vocabulary_ids"), str):
        keyword["vocabulary_ids"] = load_vocabulary(keyword["vocabulary_ids"])
    return preset


def load_vocabulary(name: str) -> list[int]:
    """Read the CLIP token ids in the captions of `"flickr8k"` (8,112) or `"spokencoco"` (19,787), by frequency."""
    file = resources.files(__package__) / "vocabularies" / f"{name}.npy"
    if not file.is_file():
        raise ValueError(f"There is no vocabulary {name!r}; there are flickr8k and spokencoco.")
    with file.open("rb") as stream:
        return np.load(stream).astype(int).tolist()


def published_results(preset: str) -> dict[str, Any]:
    """Read what the authors reported of a published model; nobody has measured it again.

    Returns:
        `checkpoint`: where their weights are; `validation` and, where the paper has them, `test`: figures in percent
        by metric. Empty for the tiny presets.
    """
    file = resources.files(__package__) / "published_results.json"
    return json.loads(file.read_text(encoding="utf-8")).get(preset, {})
