"""A large batch in little memory, with the gradients of the whole of it (GradCache, arXiv 2101.06983).

What an utterance needs of its batch is little: the contrastive loss and the keywords' batch norm. So the speech side
runs twice, chunk by chunk: first without a graph, to know what the loss says of every feature; then, with the same
dropout, to carry that into the parameters. Batch norm, quantiser, CLIP and losses see the whole batch in between.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..modeling_speechclip_plus.outputs import SpeechClipPlusOutput

_SPEECH = ("input_values", "attention_mask", "speech_hidden_states", "frame_lengths", "target_lengths")
_FEATURES = ("parallel_embeds", "keyword_features", "alpha_sums")  # carry gradients
_COUNTS = ("keyword_lengths", "target_lengths", "frame_lengths")


def backward_in_chunks(
    model: Any,
    inputs: Mapping[str, Any],
    chunk_size: int,
    global_step: int = 0,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    backward: Callable[[Tensor], None] = torch.Tensor.backward,
) -> SpeechClipPlusOutput:
    """Compute the losses of a batch and add their gradients to the parameters, a chunk of utterances at a time.

    Gradients equal those of `model(**inputs, return_loss=True).loss.backward()` up to rounding; with dropout, those
    of other draws.

    Args:
        model: a `SpeechClipPlusModel` in training mode, with `padding="invariant"`: what an utterance gives must not
            depend on its chunk.
        inputs: of its forward, with images.
        chunk_size: utterances at a time.
        global_step: see the model's forward.
        autocast: makes the context in which to compute, for mixed precision.
        backward: called with the loss.

    Returns:
        The losses and what the Trainer logs, without a graph.

    Raises:
        ValueError: if the model's padding is `"original"`.
    """
    check_chunks_are_exact(model.config)
    chunks = list(_chunks(inputs, chunk_size))
    random_states, results = [], []
    for chunk in chunks:
        random_states.append(_random_state(model.device))
        with torch.no_grad(), autocast():
            results.append(_features(model, chunk, global_step))
    leaves = {
        name: _joined([result[name] for result in results]).requires_grad_()
        for name in _FEATURES
        if name in results[0]
    }
    counts = {name: torch.cat([result[name] for result in results]) for name in _COUNTS if name in results[0]}

    with autocast():
        output = _losses(model, leaves, counts, inputs)
    assert output.loss is not None
    backward(output.loss)
    after = _random_state(model.device)

    start = 0
    for chunk, state, result in zip(chunks, random_states, results, strict=True):
        _set_random_state(state, model.device)
        with autocast():
            features = _features(model, chunk, global_step)
        stop = start + len(result["frame_lengths"])
        pairs = [
            (features[name], _cut(gradient[start:stop], features[name]))
            for name, leaf in leaves.items()
            if (gradient := leaf.grad) is not None
        ]
        torch.autograd.backward([feature for feature, _ in pairs], [gradient for _, gradient in pairs])
        start = stop
    _set_random_state(after, model.device)
    detached: dict[str, Any] = {
        name: value.detach() if isinstance(value, Tensor) else value for name, value in output.items()
    }
    return SpeechClipPlusOutput(**detached)


def check_chunks_are_exact(config: Any) -> None:
    """Check that a model's utterances do not depend on their batch.

    Raises:
        ValueError: if they do.
    """
    if config.padding != "invariant":
        raise ValueError(
            "A gradient cache needs padding='invariant': with padding='original' an utterance's features depend on "
            "what it is batched with, so chunks would not give the gradients of the whole batch."
        )


def _features(model: Any, chunk: Mapping[str, Tensor], global_step: int) -> dict[str, Tensor]:
    hidden, lengths, _ = model._speech_states(
        chunk.get("input_values"),
        chunk.get("attention_mask"),
        chunk.get("speech_hidden_states"),
        chunk.get("frame_lengths"),
    )
    targets = model._target_lengths(lengths, chunk.get("target_lengths")) if model.config.has_cif else None
    speech = model._speech_features(hidden, lengths, targets, global_step)
    if (cif := speech.get("cif")) is not None:
        speech |= {"alpha_sums": cif.alpha_sums, "target_lengths": targets}
    return {name: speech[name] for name in (*_FEATURES, *_COUNTS) if name in speech} | {"frame_lengths": lengths}


def _losses(
    model: Any, leaves: dict[str, Tensor], counts: dict[str, Tensor], inputs: Mapping[str, Any]
) -> SpeechClipPlusOutput:
    output = SpeechClipPlusOutput(
        parallel_embeds=leaves.get("parallel_embeds"),
        alpha_sums=leaves.get("alpha_sums"),
        target_lengths=counts.get("target_lengths"),
        frame_lengths=counts["frame_lengths"],
    )
    if "keyword_features" in leaves:
        keywords = model._embed_keywords(leaves["keyword_features"], counts["keyword_lengths"])
        for name in ("cascaded_embeds", "keyword_ids", "keyword_lengths"):
            output[name] = keywords[name]
    if inputs.get("pixel_values") is not None:
        output.image_embeds = model.get_image_features(inputs["pixel_values"]).pooler_output
    else:
        output.image_embeds = F.normalize(inputs["image_embeds"].to(model.dtype), dim=-1)
    for name, value in model.compute_global_losses(output, inputs.get("image_ids")).items():
        output[name] = value
    return output


def _chunks(inputs: Mapping[str, Any], size: int) -> Iterator[dict[str, Tensor]]:
    """Split the speech of a batch, and cut away padding that a chunk does not need."""
    speech = {name: inputs[name] for name in _SPEECH if inputs.get(name) is not None}
    count = len(next(iter(speech.values())))
    for start in range(0, count, size):
        chunk = {name: value[start : start + size] for name, value in speech.items()}
        if "attention_mask" in chunk:
            longest = int(chunk["attention_mask"].sum(dim=1).max())
            chunk |= {name: chunk[name][:, :longest] for name in ("input_values", "attention_mask")}
        if "speech_hidden_states" in chunk:
            chunk["speech_hidden_states"] = chunk["speech_hidden_states"][:, :, : int(chunk["frame_lengths"].max())]
        yield chunk


def _joined(parts: list[Tensor]) -> Tensor:
    """Join tensors `(B_i, ...)`; of `(B_i, N_i, E)` the second dimension is padded with zeros."""
    if parts[0].ndim == 3:
        longest = max(part.shape[1] for part in parts)
        parts = [F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts]
    return torch.cat(parts)


def _cut(gradient: Tensor, feature: Tensor) -> Tensor:
    return gradient[:, : feature.shape[1]] if feature.ndim == 3 else gradient


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
