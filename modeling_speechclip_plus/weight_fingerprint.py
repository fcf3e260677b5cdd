"""Fingerprints of weights, by which an index recognises the model that made it."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

_IMAGE_TOWER = ("clip.vision_model.", "clip.visual_projection.")
# These have no part in an embedding; `masked_spec_embed` is even drawn anew where a backbone comes without it.
_UNUSED = ("masked_spec_embed", "num_batches_tracked", "logit_scale")


def weight_fingerprint(model: Any, kind: str) -> dict[str, str]:
    """Hash the weights that embed images (CLIP's image tower) or audio (all others).

    Args:
        model: A `SpeechClipPlusModel`.
        kind: `"images"` or `"audio"`.

    Returns:
        Hexadecimal digests by precision. Those of a model in float32 are of its weights rounded to bfloat16 and to
        float16, so that it is recognised when loaded in either; see `same_weights`.
    """
    own = str(model.dtype).removeprefix("torch.")
    digests = {}
    for precision in ("bfloat16", "float16") if own == "float32" else (own,):
        digest = hashlib.blake2b(digest_size=16)
        for name, value in model.state_dict().items():
            if name.startswith(_IMAGE_TOWER) == (kind == "images"):
                _hash(digest, name, value, getattr(torch, precision))
        digests[precision] = digest.hexdigest()
    return digests


def same_weights(first: dict[str, str], second: dict[str, str]) -> bool:
    """Whether two fingerprints are of the same weights, in the precisions that both have."""
    shared = first.keys() & second.keys()
    return bool(shared) and all(first[precision] == second[precision] for precision in shared)


def hash_weights(digest: Any, prefix: str, part: nn.Module) -> None:
    """Feed the weights of a module to a hash of `hashlib`, under names that begin with `prefix`."""
    for name, value in part.state_dict().items():
        _hash(digest, f"{prefix}.{name}", value, value.dtype)


def _hash(digest: Any, name: str, value: Tensor, precision: torch.dtype) -> None:
    if name.endswith(_UNUSED):
        return
    value = value.detach().cpu()
    value = value.to(precision) if value.is_floating_point() else value
    digest.update(f"{name} {tuple(value.shape)} {value.dtype}\0".encode())
    digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
