"""Gradient cache (GradCache, arXiv 2101.06983): the gradients of a large batch in little memory.

Only the contrastive loss and the keywords' batch norm join the utterances of a batch. So `model.encode_audio` runs
chunk by chunk, and of each chunk only the features are kept: `torch.utils.checkpoint` computes the rest again, with
the same dropout, when the loss's gradients of the features arrive. `model.score` sees the whole batch in between.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from ..modeling_speechclip_plus.outputs import SpeechClipPlusAudioOutput, SpeechClipPlusOutput

_AUDIO = ("input_values", "attention_mask", "speech_hidden_states", "frame_lengths", "target_lengths")
_IMAGES = ("pixel_values", "image_embeds", "image_ids")
_FEATURES = (
    *("parallel_embeds", "keyword_features", "alpha_sums"),
    *("keyword_lengths", "target_lengths", "frame_lengths"),
)


def backward_in_chunks(
    model: Any,
    inputs: Mapping[str, Any],
    chunk_size: int,
    global_step: int = 0,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    backward: Callable[[Tensor], None] = torch.Tensor.backward,
) -> SpeechClipPlusOutput:
    """Compute the losses of a batch and add their gradients to the parameters, `chunk_size` utterances at a time.

    Gradients equal those of `model(**inputs, return_loss=True).loss.backward()` up to rounding; with dropout, those
    of other draws. The model needs `padding="invariant"`. `autocast` makes the context in which to compute, and
    `backward` is called with the loss. What is returned has no graph.
    """
    check_chunks_are_exact(model.config)

    def encode(chunk: dict[str, Tensor]) -> dict[str, Tensor]:
        audio = model.encode_audio(**chunk, global_step=global_step)
        return {name: audio[name] for name in _FEATURES if name in audio}

    images = {name: inputs[name] for name in _IMAGES if inputs.get(name) is not None}
    with autocast():
        chunks = _chunks(inputs, chunk_size, cut=not model.speech_adapter.fixed_length)
        parts = [checkpoint(encode, chunk, use_reentrant=False) for chunk in chunks]
        audio: dict[str, Any] = {name: _joined([part[name] for part in parts]) for name in parts[0]}
        output = model.score(SpeechClipPlusAudioOutput(**audio), **images, return_loss=True)
    backward(output.loss)
    detached: dict[str, Any] = {
        name: value.detach() if isinstance(value, Tensor) else value for name, value in output.items()
    }
    return SpeechClipPlusOutput(**detached)


def check_chunks_are_exact(config: Any) -> None:
    """Raise a ValueError if a model's utterances depend on their batch."""
    if config.padding != "invariant":
        raise ValueError(
            "A gradient cache needs padding='invariant': with padding='original' an utterance's features depend on "
            "what it is batched with."
        )


def _chunks(inputs: Mapping[str, Any], size: int, cut: bool) -> Iterator[dict[str, Tensor]]:
    """Split the audio of a batch, and cut away padding that a chunk does not need."""
    speech = {name: inputs[name] for name in _AUDIO if inputs.get(name) is not None}
    count = len(next(iter(speech.values())))
    for start in range(0, count, size):
        chunk = {name: value[start : start + size] for name, value in speech.items()}
        if cut and "attention_mask" in chunk:
            longest = int(chunk["attention_mask"].sum(dim=1).max())
            chunk |= {name: chunk[name][:, :longest] for name in ("input_values", "attention_mask")}
        if "speech_hidden_states" in chunk:
            chunk["speech_hidden_states"] = chunk["speech_hidden_states"][:, :, : int(chunk["frame_lengths"].max())]
        yield chunk


def _joined(parts: list[Tensor]) -> Tensor:
    """Join tensors `(B_i, ...)`; of `(B_i, N_i, E)` the second dimension is padded with zeros."""
    if parts[0].ndim < 3:
        return torch.cat(parts)
    return pad_sequence([row for part in parts for row in part], batch_first=True)
