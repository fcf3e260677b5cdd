"""Which weights made an embedding: a short text that is the same for the same weights only."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

KINDS = ("images", "recordings")
# Settings that change what the same weights compute; sizes show in the weights' shapes.
_TOWER_SETTINGS = ("hidden_act", "layer_norm_eps", "num_attention_heads")
_SPEECH_SETTINGS = (*_TOWER_SETTINGS, "model_type", "conv_stride", "do_stable_layer_norm", "feat_extract_activation")
_MODEL_SETTINGS = ("variant", "padding", "normalize_hidden_states", "branch_config", "cif_config", "keyword_config")
# For training alone; the first is drawn anew where a backbone comes without it.
_UNUSED = ("masked_spec_embed", "num_batches_tracked")


def weight_fingerprint(model: Any, kind: str, branch: str | None = None) -> dict[str, str]:
    """Tell the weights that embed pictures, or recordings, from others.

    A model that was loaded in half precision is recognised by one in single precision: the fingerprint is taken of the
    weights as they are and as they are after rounding.

    Args:
        model: a `SpeechClipPlusModel`.
        kind: "images": CLIP's image tower. "recordings": all that has a part in embedding speech.
        branch: "parallel" or "cascaded", for recordings.

    Returns:
        Hexadecimal texts by precision: of a float32 model "float32", "bfloat16" and "float16", of others their own.

    Raises:
        ValueError: for an unknown kind or a branch that the model does not have.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: choose {' or '.join(KINDS)}.")
    if kind == "recordings" and (branch not in ("parallel", "cascaded") or not getattr(model.config, f"has_{branch}")):
        raise ValueError(f"This {model.config.variant} model has no {branch!r} branch.")
    own = str(model.dtype).removeprefix("torch.")
    names = ("float32", "bfloat16", "float16") if own == "float32" else (own,)
    return {name: _digest(model, kind, branch, getattr(torch, name)) for name in names}


def same_weights(first: Mapping[str, str], second: Mapping[str, str]) -> bool | None:
    """Compare two fingerprints in the finest precision that both have; None if they have none in common."""
    shared = [name for name in ("float32", "bfloat16", "float16") if name in first and name in second]
    return first[shared[0]] == second[shared[0]] if shared else None


def _digest(model: Any, kind: str, branch: str | None, dtype: torch.dtype) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, value in _settings(model.config, kind, branch):
        digest.update(f"{name}={value!r}\0".encode())
    for prefix, part in _parts(model, kind, branch):
        hash_weights(digest, prefix, part, dtype)
    return digest.hexdigest()


def hash_weights(digest: Any, prefix: str, part: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Feed a module's weights to a hash.

    Args:
        digest: of `hashlib`.
        prefix: name of the module.
        part: the module.
        dtype: what floating point weights are rounded to; None leaves them as they are.
    """
    for name, value in part.state_dict().items():
        if name.endswith(_UNUSED):
            continue
        value = value.detach().cpu()
        if dtype is not None and value.is_floating_point():
            value = value.to(dtype)
        digest.update(f"{prefix}.{name} {tuple(value.shape)} {value.dtype}\0".encode())
        digest.update(_bytes(value))


def _bytes(value: Tensor) -> memoryview:
    return value.contiguous().flatten().view(torch.uint8).numpy().data


def _parts(model: Any, kind: str, branch: str | None) -> Iterator[tuple[str, nn.Module]]:
    if kind == "images":
        yield "vision_model", model.clip.vision_model
        yield "projection", model.clip.visual_projection
        return
    yield "speech_encoder", model.speech_encoder
    yield "layer_sum", model.layer_sum
    yield "branch", model.branch
    if branch == "parallel":
        yield "parallel_projection", model.parallel_projection
        return
    if model.config.has_cif:
        yield "cif", model.cif
    yield "keyword_projection", model.keyword_projection
    yield "keyword_norm", model.keyword_norm
    yield "text_model", model.clip.text_model
    yield "text_projection", model.clip.text_projection


def _settings(config: Any, kind: str, branch: str | None) -> Iterator[tuple[str, Any]]:
    if kind == "images":
        for name in _TOWER_SETTINGS:
            yield name, getattr(config.clip_config.vision_config, name)
        return
    yield "branch", branch
    for name in _SPEECH_SETTINGS:
        yield f"speech.{name}", getattr(config.speech_config, name)
    for name in _TOWER_SETTINGS:
        yield f"text.{name}", getattr(config.clip_config.text_config, name)
    values = config.to_dict()
    for name in _MODEL_SETTINGS:
        yield name, values[name]
