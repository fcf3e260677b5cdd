"""What a pipeline is called with, as single inputs that know their kind and name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset


@dataclass(frozen=True)
class PipelineInput:
    """One recording, image or text.

    Attributes:
        kind: "audio", "images" or "text".
        item: What was given.
        name: What errors call it, for instance "audio[3]".
    """

    kind: str
    item: Any
    name: str


class InputDataset(Dataset):
    """Inputs out of a list, a data set or a column of one, each read when its turn comes.

    Args:
        kind: "audio", "images" or "text".
        items: Whatever has a length and can be indexed.
        name: What errors call the items; their kind if not given.
        numbers: Which of them, in this order; all if not given.
    """

    def __init__(self, kind: str, items: Any, name: str | None = None, numbers: Sequence[int] | None = None) -> None:
        self.kind, self.items, self.name = kind, items, name or kind
        self.numbers = range(len(items)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> PipelineInput:
        number = self.numbers[index]  # its IndexError is what ends a loop over a data set
        return PipelineInput(self.kind, self.items[number], f"{self.name}[{number}]")


def pipeline_inputs(kind: str, given: Any) -> tuple[Any, bool]:
    """Bring what a pipeline is called with to what `transformers.Pipeline.__call__` takes.

    Args:
        kind: "audio", "images" or "text".
        given: One input, or a list, a tuple, a column of a data set (all of which are answered by a list), or a data
            set or a generator (answered by an iterator that reads as it goes).

    Returns:
        A `PipelineInput`, a list or data set of them, or a generator; and whether the answer shall be a list.

    Raises:
        ValueError: For an empty list.
    """
    if isinstance(given, Dataset) and not isinstance(given, IterableDataset):
        return InputDataset(kind, given), False
    if _is_stream(given):
        return (PipelineInput(kind, item, f"{kind}[{index}]") for index, item in enumerate(given)), False
    if not is_batch(kind, given):
        return PipelineInput(kind, given, kind), False
    if len(given) == 0:
        raise ValueError(f"{kind}: an empty list; give at least one.")
    if isinstance(given, (list, tuple)):
        return [PipelineInput(kind, item, f"{kind}[{index}]") for index, item in enumerate(given)], True
    return InputDataset(kind, given), True


def is_batch(kind: str, given: Any) -> bool:
    """Whether `given` is several inputs: a list, a tuple, a column, a 4-dimensional array of images.

    A list of numbers is one waveform; a string, bytes and any other array or tensor are one input.
    """
    if isinstance(given, (np.ndarray, torch.Tensor)):
        return kind == "images" and given.ndim == 4
    if isinstance(given, (str, bytes, bytearray, memoryview, Mapping)) or not isinstance(given, Sequence):
        return False
    return not (kind == "audio" and len(given) and isinstance(given[0], Real) and not isinstance(given[0], bool))


def recording_of(given: PipelineInput, sampling_rate: int) -> tuple[Any, int | None]:
    """Read a recording as transformers' audio pipelines do.

    Args:
        given: What `load_audio` takes, or a dictionary with "raw" and "sampling_rate".
        sampling_rate: That of an array which comes alone.

    Returns:
        What `load_audio` takes, and the sampling rate of an array without its own.

    Raises:
        ValueError: If a dictionary has an array and no sampling rate.
    """
    item = given.item
    if not isinstance(item, Mapping):
        return item, sampling_rate
    array = item["raw"] if item.get("raw") is not None else item.get("array")
    if array is None:
        return item, None
    if item.get("sampling_rate") is None:
        raise ValueError(f'{given.name}: a dictionary with an array needs its "sampling_rate" (Hz) too.')
    return {"array": array, "sampling_rate": item["sampling_rate"]}, None


def _is_stream(given: Any) -> bool:
    # A column of a streamed data set can be iterated over, and nothing else; so can a file object, which is one input.
    return (
        isinstance(given, (Iterable, IterableDataset))
        and not isinstance(given, (Sequence, Mapping, np.ndarray, torch.Tensor, bytearray, memoryview))
        and not hasattr(given, "read")
    )
