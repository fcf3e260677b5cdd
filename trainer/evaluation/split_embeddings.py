"""What a model gives for a whole split: every utterance once, every picture once, and no waveform kept."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...modeling_speechclip_plus.audio_utils import SAMPLING_RATE, load_audio
from ...modeling_speechclip_plus.cif import keyword_times
from ..batched_embedding import (
    BATCHES_SORTED_TOGETHER,
    batches_by_length,
    embed_pixels,
    picture_pixels,
    speech_inputs,
)
from .evaluate import KEPT_OUTPUTS
from .spoken_keywords import frame_seconds

_AT_THE_END = 1e-3  # frames


@dataclass
class SplitEmbeddings:
    """Embeddings and keywords of a split.

    Attributes:
        outputs: by the names of `evaluation.KEPT_OUTPUTS` (without `image_embeds`), S rows each, those of varying
            length padded.
        image_embeds: (I, P), each picture once.
        image_ids: (I,) its id.
        image_rows: the first row of the data set with each picture.
        speech_image_ids: (S,) the picture of each utterance.
        captions: S texts, "" where there is none.
        names: for each utterance what its alignment may be called: its caption id, the name of its file.
        seconds: length of each utterance.
        boundaries: for each utterance the times, in seconds, at which CIF fires before its end; None without CIF.
    """

    outputs: dict[str, Tensor]
    image_embeds: Tensor
    image_ids: Tensor
    image_rows: list[int]
    speech_image_ids: Tensor
    captions: list[str]
    names: list[list[str]]
    seconds: list[float] = field(default_factory=list)
    boundaries: list[list[float]] | None = None


@torch.no_grad()
def embed_split(
    model: Any,
    processor: Any,
    dataset: Any,
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
) -> SplitEmbeddings:
    """Embed a split.

    Args:
        model: a `SpeechClipPlusModel` in evaluation mode.
        processor: its processor.
        dataset: a `datasets.Dataset` with the columns of this package.
        batch_size: utterances, or pictures, at a time.
        progress: called after every batch with the number of utterances or pictures in it.

    Raises:
        ValueError: if the data set is empty or lacks a column, or a recording or picture cannot be read (it is named).
    """
    missing = [name for name in ("audio", "image", "image_id") if name not in dataset.column_names]
    if missing or len(dataset) == 0:
        raise ValueError(
            f"The data set has {len(dataset)} rows of {', '.join(dataset.column_names)}; expected at least one row, "
            f"with audio, image and image_id{' (missing: ' + ', '.join(missing) + ')' if missing else ''}."
        )
    columns = set(dataset.column_names)
    count = len(dataset)
    captions = [text or "" for text in dataset["text"]] if "text" in columns else [""] * count
    caption_ids = list(dataset["caption_id"]) if "caption_id" in columns else [f"row {row}" for row in range(count)]
    ids = [int(image_id) for image_id in dataset["image_id"]]
    first: dict[int, int] = {}
    for row, image_id in enumerate(ids):
        first.setdefault(image_id, row)
    split = SplitEmbeddings(
        outputs={},
        image_embeds=_embed_images(model, processor, dataset, caption_ids, list(first.values()), batch_size, progress),
        image_ids=torch.tensor(list(first)),
        image_rows=list(first.values()),
        speech_image_ids=torch.tensor(ids),
        captions=captions,
        names=[[str(name)] for name in caption_ids],
        seconds=[0.0] * count,
        boundaries=[[] for _ in range(count)] if model.config.has_cif else None,
    )
    _embed_speech(model, processor, dataset, split, batch_size, progress)
    return split


def _embed_images(
    model: Any, processor: Any, dataset: Any, names: list[str], rows: list[int], batch_size: int, progress: Any
) -> Tensor:
    column = dataset.select_columns(["image"])
    parts = []
    for start in range(0, len(rows), batch_size):
        batch = [
            picture_pixels(processor, column[row]["image"], f"image of {names[row]}")
            for row in rows[start : start + batch_size]
        ]
        parts.append(embed_pixels(model, batch))
        if progress is not None:
            progress(len(batch))
    return torch.cat(parts)


def _embed_speech(
    model: Any, processor: Any, dataset: Any, split: SplitEmbeddings, batch_size: int, progress: Any
) -> None:
    column = dataset.select_columns(["audio"])
    rows_of: dict[str, list[Tensor]] = {}
    for start in range(0, len(dataset), batch_size * BATCHES_SORTED_TOGETHER):
        window = []
        for row in range(start, min(start + batch_size * BATCHES_SORTED_TOGETHER, len(dataset))):
            audio = column[row]["audio"]
            window.append((row, load_audio(audio, name=f"audio of {split.names[row][0]}")))
            split.seconds[row] = len(window[-1][1]) / SAMPLING_RATE
            if isinstance(audio, dict) and audio.get("path"):
                split.names[row].append(Path(audio["path"]).stem)
        for batch in batches_by_length(window, batch_size):
            outputs = model(**speech_inputs(model, processor, batch))
            found = {name: outputs[name] for name in KEPT_OUTPUTS if outputs.get(name) is not None}
            if model.config.has_cif and model.config.cif_config.target_length == "frames":
                found["target_lengths"] = outputs.target_lengths
            for name, value in found.items():
                store = rows_of.setdefault(name, [torch.empty(0)] * len(dataset))
                for (row, _), own in zip(batch, value.cpu(), strict=True):
                    store[row] = own.float() if own.is_floating_point() else own
            if split.boundaries is not None:
                for (row, _), times in zip(batch, _firing_times(model, outputs), strict=True):
                    split.boundaries[row] = times
            if progress is not None:
                progress(len(batch))
    split.outputs = {name: _stacked(values, KEPT_OUTPUTS[name]) for name, values in rows_of.items()}


def _firing_times(model: Any, outputs: Any) -> list[list[float]]:
    spans = keyword_times(outputs.alphas, outputs.frame_lengths, outputs.keyword_lengths, model.cif.threshold)
    seconds = frame_seconds(model)
    return [
        [end * seconds for end in ends[:count] if end < frames - _AT_THE_END]
        for ends, count, frames in zip(
            spans[..., 1].tolist(), outputs.keyword_lengths.tolist(), outputs.frame_lengths.tolist(), strict=True
        )
    ]


def _stacked(rows: list[Tensor], padding: int) -> Tensor:
    if rows[0].dim() == 0:
        return torch.stack(rows)
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
