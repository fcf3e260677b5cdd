"""What the frozen encoders give for a data set, computed once.

The speech encoder and CLIP's image tower do not change in training, so their outputs for the same rows do not either.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..modeling_speechclip_plus.audio_utils import load_audio
from ..modeling_speechclip_plus.modeling_speechclip_plus import is_frozen
from .batched_embedding import batches_by_length, embed_pixels, picture_pixels, speech_inputs
from .memory import release_memory

# Utterances are sorted by length within this many batches: little padding, and few waveforms in memory.
_BATCHES_SORTED_TOGETHER = 16


class FrozenFeatures(Dataset):
    """Rows whose `speech_hidden_states` and `image_embeds` are computed already, as `SpeechImageCollator` takes them.

    Args:
        states: one tensor (L+1, T, D) per utterance.
        image_embeds: (I, P), each picture once.
        image_rows: for each utterance the row of its picture in `image_embeds`.
        columns: the other columns of the rows: `image_id`, `text`, `caption_id`, ...
    """

    def __init__(
        self,
        states: Sequence[Tensor],
        image_embeds: Tensor,
        image_rows: Sequence[int],
        columns: Mapping[str, Sequence[Any]],
    ) -> None:
        self.states = states
        self.shapes = states.shapes if isinstance(states, _StatesInFile) else [state.shape for state in states]
        self.image_embeds, self.image_rows = image_embeds, list(image_rows)
        self.columns = dict(columns)

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "speech_hidden_states": self.states[index],
            "image_embeds": self.image_embeds[self.image_rows[index]],
            **{name: values[index] for name, values in self.columns.items()},
        }

    @property
    def lengths(self) -> list[int]:
        """Frames of each utterance."""
        return [shape[1] for shape in self.shapes]

    @property
    def num_bytes(self) -> int:
        """Size of the hidden states, in bytes."""
        return sum(shape.numel() for shape in self.shapes) * self.states[0].element_size()


def compute_frozen_features(
    model: Any,
    dataset: Any,
    processor: Any,
    batch_size: int = 16,
    dtype: torch.dtype = torch.float16,
    folder: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FrozenFeatures:
    """Run the frozen encoders over a data set: every utterance once, every picture once.

    Args:
        model: a `SpeechClipPlusModel` whose backbones are frozen and whose padding is `"invariant"` (in the original
            mode an utterance's features depend on the batch, so they cannot be computed beforehand).
        dataset: a `datasets.Dataset` with `audio`, `image`, `image_id` and any other columns, which are kept.
        processor: the model's `SpeechClipPlusProcessor`.
        batch_size: utterances, or pictures, at a time.
        dtype: how the hidden states are stored.
        folder: keep the hidden states in a nameless file in this folder, which goes with the result; None keeps them
            in memory.
        progress: called with (utterances done, all utterances) after every batch.

    Raises:
        ValueError: if the data set is empty, if the features could change, or if they do not fit into `dtype`.
    """
    frozen = is_frozen(model.speech_encoder) and is_frozen(model.clip)
    if not frozen or model.config.padding != "invariant":
        raise ValueError(
            "Features can be computed beforehand only if they never change: speech encoder and CLIP must be frozen "
            f"and padding='invariant'; frozen is {frozen}, padding is {model.config.padding!r}."
        )
    if len(dataset) == 0:
        raise ValueError("The data set is empty, so there is nothing to compute.")
    was_training = model.training
    model.eval()
    try:
        encoded = _encode_speech(model, dataset, processor, batch_size, dtype, progress)
        states = _in_memory(encoded, len(dataset)) if folder is None else _StatesInFile(encoded, dtype, folder)
        image_embeds, image_rows = _encode_images(model, dataset, processor, batch_size)
    finally:
        model.train(was_training)
    columns = {name: list(dataset[name]) for name in dataset.column_names if name not in ("audio", "image")}
    return FrozenFeatures(states, image_embeds, image_rows, columns)


@torch.no_grad()
def _encode_speech(
    model: Any, dataset: Any, processor: Any, batch_size: int, dtype: torch.dtype, progress: Any
) -> Iterator[tuple[int, Tensor]]:
    """Yield (row, hidden states (L+1, T, D)) for every utterance, in no particular order."""
    audio = dataset.select_columns(["audio"])
    done = 0
    for start in range(0, len(dataset), batch_size * _BATCHES_SORTED_TOGETHER):
        rows = range(start, min(start + batch_size * _BATCHES_SORTED_TOGETHER, len(dataset)))
        waveforms = [(row, load_audio(audio[row]["audio"], name=f"audio of row {row}")) for row in rows]
        for batch in batches_by_length(waveforms, batch_size):
            hidden, lengths = model.encode_speech_frames(
                **speech_inputs(model, processor, batch)
            )  # (B, L+1, T, D), (B,)
            hidden = hidden.to("cpu", dtype)
            for (row, _), states, length in zip(batch, hidden, lengths.tolist(), strict=True):
                states = states[:, :length].clone()  # the padding and the batch are let go
                if not states.isfinite().all():
                    raise ValueError(
                        f"Hidden states of row {row} are NaN or do not fit into {dtype}; store them in torch.bfloat16 "
                        "or torch.float32."
                    )
                yield row, states
            done += len(batch)
            if progress is not None:
                progress(done, len(dataset))
        release_memory()


def _in_memory(encoded: Iterator[tuple[int, Tensor]], count: int) -> list[Tensor]:
    states = dict(encoded)
    return [states[row] for row in range(count)]


class _StatesInFile(Sequence[Tensor]):
    """Hidden states that lie one after the other in a file, read when asked for.

    Read, not mapped: what was mapped and touched counts as memory of the process, until nothing else has room.
    """

    def __init__(self, encoded: Iterator[tuple[int, Tensor]], dtype: torch.dtype, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.dtype = dtype
        self._file = tempfile.TemporaryFile(dir=folder, suffix=".features")  # has no name, so nothing is left behind
        places: dict[int, tuple[int, torch.Size]] = {}
        for row, states in encoded:
            places[row] = (self._file.tell(), states.shape)
            self._file.write(states.contiguous().view(torch.uint8).numpy().data)
        self._file.flush()
        self._places = [places[row] for row in range(len(places))]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        start, shape = self._places[index]
        self._file.seek(start)
        content = bytearray(self._file.read(shape.numel() * self.dtype.itemsize))
        return torch.frombuffer(content, dtype=self.dtype).view(shape)

    @property
    def shapes(self) -> list[torch.Size]:
        """Shape (L+1, T, D) of each utterance's states."""
        return [shape for _, shape in self._places]


@torch.no_grad()
def _encode_images(model: Any, dataset: Any, processor: Any, batch_size: int) -> tuple[Tensor, list[int]]:
    """Return the embedding of every picture (I, P), and for every row of the data set that of its picture."""
    first_row: dict[int, int] = {}
    for row, image_id in enumerate(dataset["image_id"]):
        first_row.setdefault(image_id, row)
    images = dataset.select_columns(["image"])
    rows = list(first_row.values())
    embeds = []
    for start in range(0, len(rows), batch_size):
        batch = [
            picture_pixels(processor, images[row]["image"], f"image of row {row}")
            for row in rows[start : start + batch_size]
        ]
        embeds.append(embed_pixels(model, batch))
    place = {image_id: number for number, image_id in enumerate(first_row)}
    return torch.cat(embeds), [place[image_id] for image_id in dataset["image_id"]]
