"""Configuration of an original checkpoint, from its tensors' shapes and its own hyper-parameters."""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..configuration.presets import load_preset, preset_names

# Attention heads leave no trace in the weights. HuBERT comes in these widths; CLIP always has 64 channels a head.
HUBERT_HEADS = {768: 12, 1024: 16, 1280: 16}
_CLIP_HEAD_SIZE = 64
_CIF_DROPOUT = 0.5  # whatever its configuration says, the original drops half (and does so twice)
_CASCADED = "model_settings.cascaded_branch"
_CIF = f"{_CASCADED}.downsampling.cif"

Settings = dict[str, Any]  # dotted names of `SpeechClipPlusConfig`, such as "branch_config.layer_type"


def settings_of_weights(weights: Mapping[str, Tensor]) -> Settings:
    """Read off renamed weights what their names and shapes tell; those of no supported model are a ValueError."""
    has_cif = any(name.startswith("cif.") for name in weights)
    has_cascaded = any(name.startswith("keyword_projection.") for name in weights)
    has_parallel = any(name.startswith("parallel_projection.") for name in weights)
    if not (has_parallel or has_cascaded):
        raise ValueError("The checkpoint holds neither a parallel nor a cascaded branch: it is no SpeechCLIP model.")
    kind = "hybrid" if has_parallel and has_cascaded else "cascaded" if has_cascaded else "parallel"
    found: Settings = {"model_variant": f"{kind}_plus" if has_cif else kind}
    found |= {f"speech_config.{key}": value for key, value in _speech(weights).items()}
    found |= {f"clip_config.{key}": value for key, value in settings_of_clip(weights).items()}
    found |= {f"branch_config.{key}": value for key, value in _branch(weights).items()}
    if has_cif:
        found["cif_config.conv_layers"] = _count(weights, "cif.convolutions.")
        found["cif_config.conv_width"] = weights["cif.convolutions.0.weight"].shape[2]
    if has_cascaded:
        found["keyword_config.projection_hidden_size"] = _hidden_size(weights, "keyword_projection")
        if not has_cif:
            found["keyword_config.num_keywords"] = _shape(weights, "branch.cls_tokens")[0] - int(has_parallel)
    found["loss_config.train_temperature"] = "logit_scale" in weights
    return found


# Where the original's configuration has what neither weights nor names tell; BRANCH is the variant's branch.
_PATHS = {
    "speech_config.hidden_size": "BRANCH.transformer_args.d_model",
    "branch_config.num_attention_heads": "BRANCH.transformer_args.nhead",
    "branch_config.dropout": "BRANCH.transformer_args.dropout",
    "branch_config.layer_norm_eps": "BRANCH.transformer_args.layer_norm_eps",
    "loss_config.parallel_weight": "model_settings.parallel_objective_weight",
    "loss_config.cascaded_weight": "model_settings.cascaded_objective_weight",
    "loss_config.temperature": "cl_loss.args.temperature",
    "retrieval_branch": "retrieval.audio_feat_src",
    "normalize_hidden_states": "audio_encoder.normalize_hiddenstates",
    "do_normalize": "data.dataset.normalize_waveform",
}
_CASCADED_PATHS = {
    "keyword_config.projection_dropout": f"{_CASCADED}.keyword.kw_projection.dropout",
    "keyword_config.num_keywords": f"{_CASCADED}.keyword.number",
}
_CIF_PATHS = {
    "cif_config.threshold": f"{_CIF}.cif_threshold",
    "cif_config.tail_threshold": f"{_CIF}.tail_handling_firing_threshold",
    "cif_config.scale_until_step": f"{_CIF}.scaling_step",
    "loss_config.quantity_weight": f"{_CIF}.quantity_loss_weight",
}


def settings_of_hyperparameters(config: Mapping[str, Any], variant: str) -> Settings:
    """Read what the original's configuration says, and neither weights nor names tell."""
    branch = "model_settings.parallel_branch" if variant == "parallel" else _CASCADED
    paths = {key: path.replace("BRANCH", branch) for key, path in _PATHS.items()}
    if variant != "parallel":
        paths |= _CASCADED_PATHS
    if variant.endswith("_plus"):
        paths |= _CIF_PATHS
        del paths["keyword_config.num_keywords"]
    found = {key: setting_at(config, path) for key, path in paths.items()}
    if setting_at(config, f"{branch}.transformer_args.norm_first"):
        raise ValueError("The checkpoint's branch normalises before attention (norm_first), which is not supported.")
    if variant != "parallel":
        scale = setting_at(config, f"{_CASCADED}.keyword.batchnorms.std_scale")
        found["keyword_config.batch_norm_scale"] = scale[0] if isinstance(scale, list) and scale else scale
        found["keyword_config.temperature"] = _quantizer_temperature(setting_at(config, f"{_CASCADED}.vq.args.temp"))
        if setting_at(config, f"{_CASCADED}.vq.args.hard") is False:
            raise ValueError("The checkpoint's quantiser mixes tokens (hard: false), which is not supported.")
    if variant.endswith("_plus"):
        found["cif_config.dropout"] = _CIF_DROPOUT
        if setting_at(config, f"{_CIF}.apply_scaling") is False:
            found["cif_config.scale_until_step"] = 0
        if setting_at(config, f"{_CIF}.apply_tail_handling") is False:  # a remainder never reaches a whole threshold
            found["cif_config.tail_threshold"] = found["cif_config.threshold"]
    return {key: value for key, value in found.items() if value is not None}


def setting_at(config: Any, path: str) -> Any:
    """Value at a dotted path of nested dictionaries; None where there is none."""
    for name in path.split("."):
        if config is None:
            return None
        if not isinstance(config, Mapping):
            raise ValueError(f"The checkpoint's hyper-parameters hold no dictionary above {name!r} of {path}.")
        config = config.get(name)
    return config


def settings_of_preset(name: str) -> Settings:
    """Flatten a preset, with its processor's `do_normalize`."""
    preset = load_preset(name)
    return {**_flatten(preset["config"]), **_flatten(preset["processor"])}


def merge_settings(*sources: tuple[str, Settings]) -> Settings:
    """Put named settings together; two that contradict each other are a ValueError, which names both."""
    merged: Settings = {}
    origin: dict[str, str] = {}
    for source, settings in sources:
        for key, value in settings.items():
            if key not in merged:
                merged[key], origin[key] = value, source
            elif merged[key] != value:
                raise ValueError(f"{key} is {_shown(merged[key])} by {origin[key]}, but {_shown(value)} by {source}.")
    return merged


def matching_presets(settings: Settings) -> list[str]:
    """Names of the published configurations that these settings do not contradict."""
    return [
        name
        for name in preset_names()
        if not name.endswith("-tiny")
        and all(settings.get(key, value) == value for key, value in settings_of_preset(name).items())
    ]


def nested(settings: Settings) -> dict[str, Any]:
    """Turn dotted names into the dictionaries that `SpeechClipPlusConfig` takes."""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        *path, last = key.split(".")
        block = values
        for name in path:
            block = block.setdefault(name, {})
        block[last] = value
    return values


def _speech(weights: Mapping[str, Tensor]) -> Settings:
    prefix = "speech_encoder."
    if f"{prefix}feature_projection.projection.weight" not in weights:
        raise ValueError("The checkpoint holds no HuBERT (audio_encoder.encoder.post_extract_proj.weight).")
    width, channels = _shape(weights, f"{prefix}feature_projection.projection.weight")
    convolutions = [
        _shape(weights, f"{prefix}feature_extractor.conv_layers.{layer}.conv.weight")
        for layer in range(_count(weights, f"{prefix}feature_extractor.conv_layers."))
    ]
    # fairseq normalises either after the first convolution, over groups, or after each, over channels; its HuBERTs of
    # the second kind put the layer norms of the transformer first.
    each = f"{prefix}feature_extractor.conv_layers.1.layer_norm.weight" in weights
    _, in_group, position_width = _shape(
        weights, f"{prefix}encoder.pos_conv_embed.conv.parametrizations.weight.original1"
    )
    groups = width // in_group
    return {
        "model_type": "hubert",
        "hidden_size": width,
        "num_hidden_layers": _count(weights, f"{prefix}encoder.layers."),
        # Of other widths than the published ones nothing is known but that fairseq's own default has as many heads as
        # groups in the positional convolution.
        "num_attention_heads": HUBERT_HEADS.get(width, groups),
        "intermediate_size": _shape(weights, f"{prefix}encoder.layers.0.feed_forward.intermediate_dense.weight")[0],
        "feat_extract_norm": "layer" if each else "group",
        "do_stable_layer_norm": each,
        "conv_bias": f"{prefix}feature_extractor.conv_layers.0.conv.bias" in weights,
        "conv_dim": [out for out, _, _ in convolutions],
        "conv_kernel": [kernel for _, _, kernel in convolutions],
        "conv_stride": [5 if kernel == 10 else 2 for _, _, kernel in convolutions],
        "num_conv_pos_embeddings": position_width,
        "num_conv_pos_embedding_groups": groups,
        "feat_proj_layer_norm": f"{prefix}feature_projection.layer_norm.weight" in weights,
    } | ({} if f"{prefix}masked_spec_embed" in weights else {"mask_time_prob": 0.0, "mask_feature_prob": 0.0})


def settings_of_clip(weights: Mapping[str, Tensor]) -> Settings:
    """Read off CLIP's renamed weights what `CLIPConfig` needs: `projection_dim`, `text_config.hidden_size`, ..."""
    if any(name.startswith("clip.visual.layer") for name in weights):
        raise ValueError("The checkpoint's CLIP has a ResNet image tower; only vision transformers are supported.")
    patches = _shape(weights, "clip.vision_model.embeddings.patch_embedding.weight")
    places = _shape(weights, "clip.vision_model.embeddings.position_embedding.weight")[0]
    vocabulary, text_width = _shape(weights, "clip.text_model.embeddings.token_embedding.weight")
    text_positions = _shape(weights, "clip.text_model.embeddings.position_embedding.weight")[0]
    joint = _shape(weights, "clip.text_projection.weight")[0]
    found: Settings = {"projection_dim": joint}
    for tower, width in (("text", text_width), ("vision", patches[0])):
        layers = f"clip.{tower}_model.encoder.layers."
        found |= {
            f"{tower}_config.hidden_size": width,
            f"{tower}_config.num_hidden_layers": _count(weights, layers),
            f"{tower}_config.num_attention_heads": max(1, width // _CLIP_HEAD_SIZE),
            f"{tower}_config.intermediate_size": _shape(weights, f"{layers}0.mlp.fc1.weight")[0],
            f"{tower}_config.projection_dim": joint,
        }
    return found | {
        "text_config.vocab_size": vocabulary,
        "text_config.max_position_embeddings": text_positions,
        # OpenAI's tokenizer has the start and the end token last.
        "text_config.bos_token_id": vocabulary - 2,
        "text_config.eos_token_id": vocabulary - 1,
        "vision_config.patch_size": patches[2],
        "vision_config.image_size": patches[2] * math.isqrt(places - 1),
    }


def _branch(weights: Mapping[str, Tensor]) -> Settings:
    feed_forward = weights.get("branch.layers.0.feed_forward.0.weight")
    found: Settings = {
        "layer_type": "attention_and_norm" if feed_forward is None else "transformer_encoder",
        "num_layers": _count(weights, "branch.layers."),
        "parallel_projection_hidden_size": _hidden_size(weights, "parallel_projection"),
    }
    if feed_forward is not None:
        found["intermediate_size"] = feed_forward.shape[0]
    return found


def _shape(weights: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in weights:
        raise ValueError(f"The checkpoint is incomplete: nothing in it becomes {name!r}.")
    return tuple(weights[name].shape)


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix) :].partition(".")[0] for name in weights if name.startswith(prefix)})


def _hidden_size(weights: Mapping[str, Tensor], head: str) -> int | None:
    hidden = weights.get(f"{head}.0.weight")
    return None if hidden is None else hidden.shape[0]


def _quantizer_temperature(text: Any) -> float | None:
    """Read "fixed=0.1", or "learnable=0.1", which starts from there."""
    match = re.fullmatch(r"(?:fixed|learnable)=(\d+(?:\.\d+)?)", str(text))
    return None if match is None else float(match[1])


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Settings:
    flat: Settings = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and key not in ("speech_backbone", "clip_backbone"):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _shown(value: Any) -> str:
    return f"a list of {len(value)} entries" if isinstance(value, list) and len(value) > 10 else repr(value)[:200]
