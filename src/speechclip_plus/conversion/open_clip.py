"""open_clip models converted to transformers' `CLIPModel`, where both compute the same."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel
from transformers.image_utils import PILImageResampling

from ..atomic_files import check_new_folder, finished_folder
from .state_dict_names import rename_clip_weight
from .vocabulary import VOCABULARY_SIZE, openai_tokenizer

# The settings of an architecture that `_convert` puts into a `CLIPConfig`; any other has to be off.
_VISION = {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "patch_dropout"}
_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
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
        reason = str(error).rpartition("WeightsUnpickler error: ")[2]  # torch first advises loading it unsafely
        raise ValueError(
            f"{pretrained} could not be loaded as weights of {architecture}: {type(error).__name__}: {reason[:300]}"
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
    """Refuse what `CLIPModel` has no setting for."""
    vision, text = config.get("vision_cfg") or {}, config.get("text_cfg") or {}
    blocks = ((config, _TOP), (vision, _VISION), (text, _TEXT))
    other = {key: value for block, known in blocks for key, value in block.items() if key not in known and value}
    # A list of layers is a ResNet, one of sizes an image that is no square.
    other |= {key: vision[key] for key in ("layers", "image_size", "patch_size") if isinstance(vision.get(key), list)}
    if text.get("vocab_size", VOCABULARY_SIZE) != VOCABULARY_SIZE:
        other["vocab_size"] = text["vocab_size"]
    if other:
        raise ValueError(
            f"{architecture} is not a plain vision transformer with CLIP's causal text tower, which CLIPModel is: "
            f"{'; '.join(f'{key} = {value!r}' for key, value in other.items())[:500]}."
        )


def _convert(architecture: str, config: dict[str, Any], original: Any) -> CLIPModel:
    vision, text = config["vision_cfg"], config["text_cfg"]
    # open_clip itself chooses quick GELU for OpenAI's weights, whatever the architecture's name says.
    quick = "quickgelu" in type(original.transformer.resblocks[0].mlp[1]).__name__.lower()
    shared = {"projection_dim": config["embed_dim"], "hidden_act": "quick_gelu" if quick else "gelu"}

    def tower(block: dict[str, Any], width: int) -> dict[str, Any]:
        width = block.get("width", width)
        return shared | {
            "hidden_size": width,
            "intermediate_size": int(width * block.get("mlp_ratio", 4.0)),
            "num_hidden_layers": block.get("layers", 12),
        }

    model = CLIPModel(
        CLIPConfig(
            projection_dim=config["embed_dim"],
            text_config=tower(text, 512)
            | {
                "vocab_size": VOCABULARY_SIZE,
                "num_attention_heads": text.get("heads", 8),
                "max_position_embeddings": text.get("context_length", 77),
                "bos_token_id": VOCABULARY_SIZE - 2,
                "eos_token_id": VOCABULARY_SIZE - 1,
            },
            vision_config=tower(vision, 768)
            | {
                "num_attention_heads": vision.get("width", 768) // vision.get("head_width", 64),
                "image_size": vision.get("image_size", 224),
                "patch_size": vision.get("patch_size", 16),
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
