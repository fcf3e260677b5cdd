"""Batches of recordings and pictures that cost little: sorted by length, decoded one at a time."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..modeling_speechclip_plus.audio_utils import SAMPLING_RATE
from ..modeling_speechclip_plus.image_utils import load_image

# Utterances are sorted by length within this many batches: little padding, and few waveforms in memory.
BATCHES_SORTED_TOGETHER = 8


def batches_by_length(
    window: Iterable[tuple[int, np.ndarray]], batch_size: int, max_samples: int | None = None
) -> Iterator[list[tuple[int, np.ndarray]]]:
    """Batch utterances, the shortest first.

    Args:
        window: utterances with any number that tells them apart.
        batch_size: utterances in a batch.
        max_samples: samples in a batch, padding included; longer utterances are alone. None: any number.
    """
    batch: list[tuple[int, np.ndarray]] = []
    for number, waveform in sorted(window, key=lambda item: len(item[1])):
        too_large = max_samples is not None and len(waveform) * (len(batch) + 1) > max_samples
        if batch and (len(batch) == batch_size or too_large):
            yield batch
            batch = []
        batch.append((number, waveform))
    if batch:
        yield batch


def speech_inputs(model: Any, processor: Any, batch: Sequence[tuple[int, np.ndarray]]) -> dict[str, Tensor]:
    """Return `input_values` and `attention_mask` (B, S) of a batch, where the model is."""
    inputs = processor(audio=[waveform for _, waveform in batch], sampling_rate=SAMPLING_RATE, return_tensors="pt")
    return {name: inputs[name].to(model.device) for name in ("input_values", "attention_mask")}


def picture_pixels(processor: Any, source: Any, name: str) -> Tensor:
    """Decode one picture: `(1, 3, H, W)`, as CLIP sees it. Nothing of its full size stays in memory.

    Args:
        processor: a `SpeechClipPlusProcessor`.
        source: what `load_image` takes.
        name: what errors call it.

    Raises:
        ValueError, TypeError, OSError: if it cannot be read.
    """
    return processor(images=[load_image(source, name=name)], return_tensors="pt")["pixel_values"]


@torch.no_grad()
def embed_pixels(model: Any, pixels: Sequence[Tensor]) -> Tensor:
    """Embed pictures from `picture_pixels`: (B, P) float32 on the CPU, unit length."""
    return model.get_image_features(torch.cat(list(pixels)).to(model.device, model.dtype)).pooler_output.float().cpu()
