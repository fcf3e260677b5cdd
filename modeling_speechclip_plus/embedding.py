"""Embedding of many utterances, images or texts by a model, in batches sorted by length.

Everything that runs a model over a collection (evaluation, indexes, caches, the quickstart) goes through here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .audio_utils import SAMPLING_RATE, load_audio
from .image_utils import load_image

# Utterances are sorted by length within this many batches: little padding, and few waveforms in memory.
BATCHES_SORTED_TOGETHER = 8
# Padding included, a batch holds at most this many seconds per utterance of `batch_size`; longer ones come alone.
MAX_SECONDS_PER_UTTERANCE = 30


@dataclass
class Batch:
    """A batch of a collection.

    Attributes:
        rows: Positions of its items in the collection.
        inputs: What the model takes, on the model's device.
        lengths: Samples of each utterance at 16 kHz; empty for images.
    """

    rows: list[int]
    inputs: dict[str, Tensor]
    lengths: list[int]


def audio_batches(
    model: Any,
    processor: Any,
    audio: Iterable[Any],
    batch_size: int = 16,
    sampling_rate: int | None = None,
    name: Callable[[int], str] = "audio of row {}".format,
    on_error: Callable[[int, Exception], None] | None = None,
    max_seconds: float | None = None,
) -> Iterator[Batch]:
    """Read utterances and batch them with others of about their length, so that little is padding.

    Args:
        model: A `SpeechClipPlusModel`.
        processor: Its processor.
        audio: Anything that `load_audio` reads: paths, bytes, arrays, values of a `datasets.Audio` column.
        batch_size: Utterances in a batch.
        sampling_rate: Hz, of arrays that do not come with theirs.
        name: What errors call the utterance of a row.
        on_error: Called with the row and the error of an utterance that cannot be read, which is then left out;
            `None` raises the error.
        max_seconds: A longer utterance is an error.

    Yields:
        Batches with `input_values` and `attention_mask` `(B, S)`, not in the order of the rows.

    Raises:
        ValueError, TypeError, OSError: If an utterance cannot be read; the message begins with its name.
    """

    def read(item: Any, name: str) -> np.ndarray:
        waveform = load_audio(item, sampling_rate=sampling_rate, name=name)
        seconds = len(waveform) / SAMPLING_RATE
        if max_seconds is not None and seconds > max_seconds:
            raise ValueError(f"{name} is {seconds:.0f} s long, more than {max_seconds} s: cut it into utterances.")
        return waveform

    waveforms = _readable(audio, read, name, on_error)
    while window := list(islice(waveforms, batch_size * BATCHES_SORTED_TOGETHER)):
        for batch in _batches_by_length(window, batch_size):
            rows, arrays = zip(*batch, strict=True)
            inputs = processor(audio=list(arrays), sampling_rate=SAMPLING_RATE, return_tensors="pt")
            inputs = {key: inputs[key].to(model.device) for key in ("input_values", "attention_mask")}
            yield Batch(list(rows), inputs, [len(array) for array in arrays])


def image_batches(
    model: Any,
    processor: Any,
    images: Iterable[Any],
    batch_size: int = 64,
    name: Callable[[int], str] = "image of row {}".format,
    on_error: Callable[[int, Exception], None] | None = None,
) -> Iterator[Batch]:
    """Read images and batch them in order, as `pixel_values` `(B, 3, H, W)`; see `audio_batches`.

    Images are decoded one at a time, so that none stays in memory in its full size.
    """

    def pixels(image: Any, name: str) -> Tensor:
        return processor(images=[load_image(image, name=name)], return_tensors="pt")["pixel_values"]  # (1, 3, H, W)

    readable = _readable(images, pixels, name, on_error)
    while batch := list(islice(readable, batch_size)):
        values = torch.cat([value for _, value in batch]).to(model.device, model.dtype)
        yield Batch([row for row, _ in batch], {"pixel_values": values}, [])


@torch.no_grad()
def embed_audio(
    model: Any,
    processor: Any,
    audio: Sequence[Any],
    batch_size: int = 16,
    branch: str | None = None,
    sampling_rate: int | None = None,
    name: Callable[[int], str] = "audio of row {}".format,
) -> Tensor:
    """Embed N utterances, as `audio_batches` takes them, by a branch: `(N, P)` float32 at unit length, on the CPU."""
    embeds = torch.empty(len(audio), model.config.projection_dim)
    for batch in audio_batches(model, processor, audio, batch_size, sampling_rate, name):
        embeds[batch.rows] = model.get_audio_features(**batch.inputs, branch=branch).pooler_output.float().cpu()
    return embeds


@torch.no_grad()
def embed_images(
    model: Any,
    processor: Any,
    images: Sequence[Any],
    batch_size: int = 64,
    name: Callable[[int], str] = "image of row {}".format,
) -> Tensor:
    """Embed N images, in any form that `load_image` reads: `(N, P)` float32 at unit length, on the CPU."""
    embeds = torch.empty(len(images), model.config.projection_dim)
    for batch in image_batches(model, processor, images, batch_size, name):
        embeds[batch.rows] = model.get_image_features(**batch.inputs).pooler_output.float().cpu()
    return embeds


@torch.no_grad()
def embed_texts(model: Any, processor: Any, texts: Sequence[str], batch_size: int = 64) -> Tensor:
    """Embed N texts by CLIP's text encoder: `(N, P)` float32 at unit length, on the CPU."""
    embeds = torch.empty(len(texts), model.config.projection_dim)
    for start in range(0, len(texts), batch_size):
        ids = processor(text=list(texts[start : start + batch_size]), return_tensors="pt")["input_ids"]
        embeds[start : start + len(ids)] = model.get_text_features(ids.to(model.device)).pooler_output.float().cpu()
    return embeds


def _readable(
    items: Iterable[Any], read: Callable[..., Any], name: Callable[[int], str], on_error: Any
) -> Iterator[tuple[int, Any]]:
    for row, item in enumerate(items):
        try:
            value = read(item, name=name(row))
        except (ValueError, TypeError, OSError) as error:
            if on_error is None:
                raise
            on_error(row, error)
            continue
        yield row, value


def _batches_by_length(
    window: list[tuple[int, np.ndarray]], batch_size: int
) -> Iterator[list[tuple[int, np.ndarray]]]:
    max_samples = batch_size * MAX_SECONDS_PER_UTTERANCE * SAMPLING_RATE
    batch: list[tuple[int, np.ndarray]] = []
    for row, waveform in sorted(window, key=lambda item: len(item[1])):
        if batch and (len(batch) == batch_size or len(waveform) * (len(batch) + 1) > max_samples):
            yield batch
            batch = []
        batch.append((row, waveform))
    yield batch
