"""Collator: from rows of a data set to the tensors of a batch."""

import operator
import zlib
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..modeling_speechclip_plus.audio_utils import SAMPLING_RATE, load_audio
from ..modeling_speechclip_plus.image_utils import load_image

# A key of a batch that the model's forward does not take: what evaluation compares its keywords with.
GOLD_SUBWORDS = "gold_subwords"


class SpeechImageCollator:
    """Turn rows of speech-image pairs into a batch for `SpeechClipPlusModel`.

    A row has `audio` and `image` (dictionaries with `bytes` or `path`, or anything the processor takes, but an array
    needs its rate: `{"array": ..., "sampling_rate": ...}`), an integer `image_id`, and where known `text` and
    `caption_id`; or `speech_hidden_states` (L+1, T, D) in place of `audio`, `image_embeds` (P,) in place of `image`.

    The batch has `input_values` (B, S) and `attention_mask` (B, S), or `speech_hidden_states` (B, L+1, T, D) and
    `frame_lengths` (B,); `pixel_values` or `image_embeds` (B, P); `image_ids` (B,) int64; and `return_loss`. It serves
    transformers' own `Trainer` too, with `remove_unused_columns=False`.

    In training, utterances of more than `max_audio_samples` at 16 kHz are cropped at a place drawn from the seed, the
    epoch and the row: `for_training` sets both.
    """

    def __init__(self, processor: Any, max_audio_samples: int | None = None, seed: int = 0) -> None:
        self.processor = processor
        self.max_audio_samples = max_audio_samples
        self.seed = seed
        self.captions = False
        # In shared memory, so that worker processes which outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def for_evaluation(self) -> "SpeechImageCollator":
        """Return a copy that adds `gold_subwords` (B, L), the captions' token ids padded with -1, and never crops."""
        evaluating = copy(self)
        evaluating.max_audio_samples, evaluating.captions = None, True
        return evaluating

    def for_training(self, max_audio_samples: int | None, seed: int) -> "SpeechImageCollator":
        """Return a copy that crops utterances of more than so many samples; None never crops."""
        training = copy(self)
        training.max_audio_samples, training.seed, training.captions = max_audio_samples, seed, False
        training._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        return training

    def set_epoch(self, epoch: int) -> None:
        """Draw other crops in this epoch. The same epoch draws the same again, so a resumed run continues exactly."""
        self._epoch.fill_(epoch)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate; a ValueError names, by its `caption_id` or `image_id`, a row that lacks something or is broken."""
        names = [_name(row, number) for number, row in enumerate(rows)]
        return {
            **self._speech(rows, names),
            **self._images(rows, names),
            "image_ids": torch.tensor([_image_id(row, name) for row, name in zip(rows, names, strict=True)]),
            "return_loss": True,
            **(self._gold_subwords(rows) if self.captions else {}),
        }

    def _speech(self, rows: Sequence[Mapping[str, Any]], names: list[str]) -> dict[str, Tensor]:
        if _all_have(rows, names, "speech_hidden_states", "audio"):
            states = [torch.as_tensor(row["speech_hidden_states"]) for row in rows]  # each (L+1, T_i, D)
            lengths = torch.tensor([len(state[0]) for state in states])
            layers, _, width = states[0].shape
            # In the dtype in which they are stored, which halves what is copied; the model computes in its own.
            padded = states[0].new_zeros(len(rows), layers, int(lengths.max()), width)  # (B, L+1, T, D)
            for index, state in enumerate(states):
                padded[index, :, : lengths[index]] = state
            return {"speech_hidden_states": padded, "frame_lengths": lengths}
        audio = [
            self._crop(load_audio(row["audio"], name=f"audio of {name}"), name)
            for row, name in zip(rows, names, strict=True)
        ]
        inputs = self.processor(audio=audio, sampling_rate=SAMPLING_RATE, return_tensors="pt")
        return {"input_values": inputs["input_values"], "attention_mask": inputs["attention_mask"]}

    def _crop(self, waveform: np.ndarray, name: str) -> np.ndarray:
        if self.max_audio_samples is None or len(waveform) <= self.max_audio_samples:
            return waveform
        # A checksum instead of a random generator: no state to save, the same in every worker process.
        draw = zlib.crc32(f"{self.seed}/{int(self._epoch)}/{name}".encode())
        start = draw % (len(waveform) - self.max_audio_samples + 1)
        return waveform[start : start + self.max_audio_samples]

    def _images(self, rows: Sequence[Mapping[str, Any]], names: list[str]) -> dict[str, Tensor]:
        if _all_have(rows, names, "image_embeds", "image"):
            return {"image_embeds": torch.stack([torch.as_tensor(row["image_embeds"]).float() for row in rows])}
        images = [load_image(row["image"], name=f"image of {name}") for row, name in zip(rows, names, strict=True)]
        return {"pixel_values": self.processor(images=images, return_tensors="pt")["pixel_values"]}

    def _gold_subwords(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        texts = [row.get("text") or "" for row in rows]  # no caption: a row of padding, which evaluation leaves out
        ids = self.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
        tokens = [torch.tensor(row or [-1]) for row in ids]
        return {GOLD_SUBWORDS: pad_sequence(tokens, batch_first=True, padding_value=-1)}  # (B, L)


def _name(row: Mapping[str, Any], number: int) -> str:
    known = (f"{key} {row[key]}" for key in ("caption_id", "image_id") if row.get(key) is not None)
    return next(known, f"row {number} of the batch")


def _image_id(row: Mapping[str, Any], name: str) -> int:
    image_id: Any = row.get("image_id")
    try:
        return operator.index(image_id)  # also of a tensor, as with_format("torch") gives it
    except TypeError:
        raise ValueError(
            f"{name} has the image_id {image_id!r}; expected a whole number, the same for all utterances of one image."
        ) from None


def _all_have(rows: Sequence[Mapping[str, Any]], names: list[str], computed: str, raw: str) -> bool:
    """Whether the rows have what is computed already; otherwise all must have the raw column."""
    if all(row.get(computed) is not None for row in rows):
        return True
    for row, name in zip(rows, names, strict=True):
        if row.get(raw) is None:
            raise ValueError(f"{name} has no `{raw}` (nor have all rows `{computed}`).")
    return False
