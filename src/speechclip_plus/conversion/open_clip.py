"""open_clip models converted to transformers' `CLIPModel`, where both compute the same."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel
from transformers.image_utils import PILImageResampling

from ..atomic_files import check_new_folder, finished_folder
from .clip_tokenizer import VOCABULARY_SIZE, openai_tokenizer
from .state_dict_names import rename_clip_weight

# Settings of an architecture under which open_clip computes what `CLIPModel` does. Any other setting, or another value
# of these, is refused.
_VISION = {
    "image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "patch_dropout",
}  # fmt: skip
_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
_NEUTRAL = {  # settings that may be there as long as they say this
    "ls_init_value": None, "attentional_pool": False, "no_ln_pre": False, "pool_type": ("tok", "argmax"),
    "final_ln_after_pool": False, "output_tokens": False, "no_causal_mask": False, "proj_bias": False,
    "embed_cls": False, "pos_embed_type": "learnable", "hf_model_name": None, "timm_model_name": None,
    "proj_type": "linear", "act_kwargs": None, "norm_kwargs": None, "hf_tokenizer_name": None,
}  # fmt: skip
_TOP = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
_TOLERANCE = 1e-4
_MAX_SHARD_SIZE = "2GB"
_RESAMPLING = {"bicubic": PILImageResampling.BICUBIC, "bilinear": PILImageResampling.BILINEAR}


def import_open_clip(
    architecture: str,
    pretrained: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    force: bool = False,
) -> float:
    """Turn an open_clip model into a folder of transformers' `CLIPModel`, with tokenizer and image processor.

    Args:
        architecture: open_clip's name of it, such as `"ViT-B-32"` or `"ViT-L-14-quickgelu"`.
        pretrained: One of open_clip's tags, such as `"laion2b_s34b_b79k"`, which is downloaded, or a file of weights.
        output_dir: Folder to make.
        force: Replace `output_dir` if it exists.

    Returns:
        The largest difference of any output between both models, on random inputs.

    Raises:
        ValueError: If the architecture is unknown or no plain CLIP; the message names what stands against it.
        OSError: If the weights are not there.
    """
    output_dir = Path(output_dir)
    check_new_folder(output_dir, force, (pretrained,))
    config, original = _load(architecture, os.fspath(pretrained))
    model = _convert(architecture, config, original)
    difference = _largest_difference(original, model)
    if not difference < _TOLERANCE:
        raise ValueError(
            f"As a CLIPModel, {architecture} computes something else: outputs differ by up to {difference:.1e}."
        )
    image_processor = _image_processor(original, model.config.vision_config.image_size)
    with finished_folder(output_dir) as work:
        openai_tokenizer().save_pretrained(work)
        image_processor.save_pretrained(work)
        model.save_pretrained(work, max_shard_size=_MAX_SHARD_SIZE)
        (work / "README.md").write_text(_card(output_dir.name, architecture, pretrained), encoding="utf-8")
    return difference


def _load(architecture: str, pretrained: str) -> tuple[dict[str, Any], Any]:
    """Load an open_clip model; returns its architecture's settings and the model."""
    import open_clip  # many seconds, and only needed here
    from open_clip.factory import load_state_dict

    config = open_clip.get_model_config(architecture)
    if config is None:
        near = difflib.get_close_matches(architecture, open_clip.list_models(), n=3, cutoff=0.4)
        raise ValueError(f"open_clip knows no architecture {architecture!r}. Near to it: {', '.join(near) or 'none'}.")
    _check_plain(architecture, config)
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if not os.path.isfile(pretrained) and pretrained not in tags:
        raise ValueError(
            f"{pretrained!r} is neither a file nor one of open_clip's weights for {architecture}: {', '.join(tags)}."
        )
    try:
        if os.path.isfile(pretrained):
            _check_places(config, load_state_dict(pretrained))
        original = open_clip.create_model(architecture, pretrained=pretrained, precision="fp32").eval()
    except OSError:
        raise
    except Exception as error:  # of any kind, for a file that is something else
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        if asked := re.search(r"GLOBAL:? ([\w.]+)", reason):  # torch goes on to advise loading it unsafely
            reason = f"it asks for {asked[1]}, which is no data"
        raise ValueError(
            f"{pretrained} could not be loaded as weights of {architecture}, a state dictionary of plain tensors: "
            f"{reason[:300]}{'...' if len(reason) > 300 else ''}"
        ) from error
    return config, original


def _check_places(config: dict[str, Any], state: Any) -> None:
    """Refuse weights for images or texts of another size, which open_clip would resample without a word."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    places = (vision.get("image_size", 224) // vision.get("patch_size", 16)) ** 2 + 1
    expected = {"visual.positional_embedding": places, "positional_embedding": text.get("context_length", 77)}
    for name, count in expected.items():
        if isinstance(state, Mapping) and name in state and len(state[name]) != count:
            raise ValueError(f"its {name} has {len(state[name])} places, the architecture {count}")


def _check_plain(architecture: str, config: dict[str, Any]) -> None:
    vision, text = config.get("vision_cfg") or {}, config.get("text_cfg") or {}
    reasons = []
    if isinstance(vision.get("layers"), list):
        reasons.append("its image tower is a ResNet")
    if vision.get("timm_model_name"):
        reasons.append(f"its image tower is timm's {vision['timm_model_name']}")
    if text.get("hf_model_name"):
        reasons.append(f"its text tower is {text['hf_model_name']}")
    if not reasons:
        for key in ("image_size", "patch_size"):
            if not isinstance(vision.get(key, 1), int):
                reasons.append(f"{key} = {vision[key]!r}, which is no square")
        if (vocabulary := text.get("vocab_size", VOCABULARY_SIZE)) != VOCABULARY_SIZE:
            reasons.append(f"it has {vocabulary} tokens, not the {VOCABULARY_SIZE} of CLIP's tokenizer")
        reasons += [f"{key}" for key in config.keys() - _TOP if config[key]]
        for block, allowed in ((vision, _VISION), (text, _TEXT)):
            for key, value in block.items():
                neutral = _NEUTRAL.get(key, ())
                same = value in neutral if isinstance(neutral, tuple) else value == neutral
                if key not in allowed and not same:
                    reasons.append(f"{key} = {value!r}")
    if reasons:
        raise ValueError(
            f"{architecture} is not a plain vision transformer with CLIP's causal text tower, which CLIPModel is: "
            f"{'; '.join(reasons)}."
        )


def _convert(architecture: str, config: dict[str, Any], original: Any) -> CLIPModel:
    vision, text = config["vision_cfg"], config["text_cfg"]
    # open_clip itself chooses quick GELU for OpenAI's weights, whatever the architecture's name says.
    quick = "quickgelu" in type(original.transformer.resblocks[0].mlp[1]).__name__.lower()
    activation = "quick_gelu" if quick else "gelu"
    model = CLIPModel(
        CLIPConfig(
            projection_dim=config["embed_dim"],
            text_config={
                "vocab_size": VOCABULARY_SIZE,
                "hidden_size": text.get("width", 512),
                "intermediate_size": int(text.get("width", 512) * text.get("mlp_ratio", 4.0)),
                "num_hidden_layers": text.get("layers", 12),
                "num_attention_heads": text.get("heads", 8),
                "max_position_embeddings": text.get("context_length", 77),
                "projection_dim": config["embed_dim"],
                "hidden_act": activation,
                "bos_token_id": VOCABULARY_SIZE - 2,
                "eos_token_id": VOCABULARY_SIZE - 1,
            },
            vision_config={
                "hidden_size": vision.get("width", 768),
                "intermediate_size": int(vision.get("width", 768) * vision.get("mlp_ratio", 4.0)),
                "num_hidden_layers": vision.get("layers", 12),
                "num_attention_heads": vision.get("width", 768) // vision.get("head_width", 64),
                "image_size": vision.get("image_size", 224),
                "patch_size": vision.get("patch_size", 16),
                "projection_dim": config["embed_dim"],
                "hidden_act": activation,
            },
        )
    ).eval()
    state: dict[str, Tensor] = {}
    for name, value in original.state_dict().items():
        if name != "attn_mask":
            state |= {new.removeprefix("clip."): tensor for new, tensor in rename_clip_weight(name, value).items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{architecture} has other parts than CLIPModel: {error}") from None
    return model


@torch.no_grad()
def _largest_difference(original: Any, model: CLIPModel) -> float:
    """Compare unit-length outputs of both towers on random inputs."""
    generator = torch.Generator().manual_seed(0)
    side = model.config.vision_config.image_size
    pixels = torch.randn(2, 3, side, side, generator=generator)
    count = min(12, original.context_length - 2)
    words = torch.randint(1, VOCABULARY_SIZE - 2, (2, count), generator=generator)
    start, end = torch.full((2, 1), VOCABULARY_SIZE - 2), torch.full((2, 1), VOCABULARY_SIZE - 1)
    ids = torch.cat([start, words, end, torch.zeros(2, original.context_length - 2 - count, dtype=torch.long)], dim=1)
    pairs = [
        (original.encode_image(pixels, normalize=True), model.get_image_features(pixel_values=pixels).pooler_output),
        (original.encode_text(ids, normalize=True), model.get_text_features(input_ids=ids).pooler_output),
    ]
    differences = [(theirs - torch.nn.functional.normalize(ours, dim=-1)).abs().max() for theirs, ours in pairs]
    return torch.stack(differences).max().item()


def _image_processor(original: Any, side: int) -> CLIPImageProcessor:
    # Some weights were trained on images squeezed into a square.
    wanted = original.visual.preprocess_cfg
    mode, interpolation = wanted.get("resize_mode") or "shortest", wanted.get("interpolation") or "bicubic"
    if mode not in ("shortest", "squash") or interpolation not in _RESAMPLING:
        raise ValueError(f"Its images are resized by {interpolation}, {mode}, which CLIPImageProcessor does not.")
    square = {"height": side, "width": side}
    return CLIPImageProcessor(
        size={"shortest_edge": side} if mode == "shortest" else square,
        crop_size=square,
        do_center_crop=mode == "shortest",
        resample=_RESAMPLING[interpolation],
        image_mean=list(wanted.get("mean") or (0.48145466, 0.4578275, 0.40821073)),
        image_std=list(wanted.get("std") or (0.26862954, 0.26130258, 0.27577711)),
    )


def _card(name: str, architecture: str, pretrained: str | os.PathLike) -> str:
    source = Path(pretrained).name if os.path.exists(pretrained) else pretrained
    return (
        "---\nlibrary_name: transformers\ntags:\n- clip\n---\n\n"
        f"# {name}\n\nopen_clip's `{architecture}` with the weights `{source}`, converted to transformers' `CLIPModel`"
        " by speechclip-plus. The licence is that of those weights.\n"
    )
