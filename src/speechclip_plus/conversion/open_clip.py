"""open_clip models converted to transformers' `CLIPModel`, where both compute the same, and CLIP's tokenizer."""

import gzip
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.image_utils import PILImageResampling

from ..atomic_files import check_new_folder, finished_folder
from .original_config import nested, settings_of_clip
from .state_dict_names import rename_clip_weight

VOCABULARY_SIZE = 49_408
_MERGES = VOCABULARY_SIZE - 2 * 256 - 2  # each byte alone and at a word's end, the start and the end
_TOLERANCE = 1e-4
_MAX_SHARD_SIZE = "2GB"
_RESAMPLING = {"bicubic": PILImageResampling.BICUBIC, "bilinear": PILImageResampling.BILINEAR}


def import_open_clip(
    architecture: str, pretrained: str | os.PathLike, output_dir: str | os.PathLike, *, force: bool = False
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
        ValueError: If the architecture is unknown or no plain CLIP, or the weights are not of it.
    """
    import open_clip  # many seconds, and only needed here

    output_dir = Path(output_dir)
    check_new_folder(output_dir, force, (pretrained,))
    try:
        original = open_clip.create_model(architecture, pretrained=os.fspath(pretrained), precision="fp32").eval()
    except OSError:
        raise
    except Exception as error:  # of any kind, for a file that is something else
        reason = str(error).rpartition("WeightsUnpickler error: ")[2]  # torch first advises loading it unsafely
        raise ValueError(
            f"{pretrained} could not be loaded as weights of {architecture}: {type(error).__name__}: {reason[:300]}"
        ) from error
    try:
        model = _convert(original)
        difference = _largest_difference(original, model)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:  # of other parts or sizes
        raise ValueError(
            f"{architecture} is not a plain vision transformer with CLIP's causal text tower, which CLIPModel is: "
            f"{str(error)[:300]}"
        ) from error
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


def openai_tokenizer() -> CLIPTokenizer:
    """Build the tokenizer of all of OpenAI's CLIP models from open_clip's list of merges, without downloading it.

    Raises:
        OSError: If open_clip_torch is not installed, or does not carry the list.
    """
    # Found rather than imported: importing open_clip takes many seconds.
    spec = find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise OSError("CLIP's tokenizer is made from open_clip's list of merges: `pip install open_clip_torch`.")
    file = Path(spec.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
    merges = [(left, right) for left, right in map(str.split, lines[1 : _MERGES + 1])]
    symbols = list(bytes_to_unicode().values())
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *(left + right for left, right in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def _convert(original: Any) -> CLIPModel:
    weights: dict[str, Tensor] = {}
    for name, value in original.state_dict().items():
        if name != "attn_mask":
            weights |= rename_clip_weight(name, value)
    config = nested(settings_of_clip(weights))
    if config["text_config"]["vocab_size"] != VOCABULARY_SIZE:
        raise ValueError(f"it has {config['text_config']['vocab_size']} tokens and not CLIP's {VOCABULARY_SIZE}")
    # open_clip itself chooses quick GELU for OpenAI's weights, whatever the architecture's name says.
    quick = "quickgelu" in type(original.transformer.resblocks[0].mlp[1]).__name__.lower()
    for tower, blocks in (("text_config", original.transformer), ("vision_config", original.visual.transformer)):
        config[tower]["num_attention_heads"] = blocks.resblocks[0].attn.num_heads
        config[tower]["hidden_act"] = "quick_gelu" if quick else "gelu"
    model = CLIPModel(CLIPConfig(**config)).eval()
    model.load_state_dict({name.removeprefix("clip."): value for name, value in weights.items()})
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
