"""The folder of the tiny CLIP: weights, tokenizer, image processor, and a card with what was measured."""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from ..scenes import IMAGE_SIZE

PIXEL_MEAN, PIXEL_STD = 0.5, 0.25

_CARD = """---
library_name: transformers
license: mit
pipeline_tag: zero-shot-image-classification
tags:
- clip
- synthetic
---

# Tiny CLIP for drawn scenes

A `CLIPModel` of {parameters:.2f} M parameters ({megabytes:.1f} MB, stored in half precision) that knows one small
world: pictures of two coloured shapes on a background, and the English captions of `speechclip_plus.trainer.scenes`.
It stands in for a real CLIP wherever no download is possible: tests, and the package's quickstart.

- Image tower: 64 x 64 pixels in patches of 8, {image_layers} layers, width {width}. Text tower: causal, {text_layers}
  layers, width {width}, 77 places. Joint space: {width}. Quick GELU.
- Subwords: {subwords}, byte-level BPE with CLIP's conventions. Every word of the captions is one subword; other text
  falls apart into bytes, whose embeddings were trained on nothing but noise.

## How it was made

```
python -m speechclip_plus.trainer.tiny_backbones.train_clip OUT {arguments}
```

{steps} steps of {batch} pairs with the symmetric contrastive loss, AdamW, on {pictures} drawings of training scenes
(two drawings of the same content are no negatives of each other), {minutes:.0f} minutes on two shared CPU cores with
torch {torch} and transformers {transformers}. Part of each batch are near neighbours: scenes that differ in one
attribute or in the order of the objects. Since it is to be read by *keywords*, {sentences:.0f} % of the training
captions were complete, {telegrams:.0f} % had lost function words, and {keywords:.0f} % moreover had subwords doubled,
wrong, superfluous or missing.

## Measured

Recall in percent among 500 scenes whose content (objects and relation) is in no training picture; chance is 0.2 and 2.

| captions | split | text to image R@1 | R@10 | image to text R@1 | R@10 |
|---|---|---|---|---|---|
{rows}

Captions: *sentence* complete; *telegram* without most function words; *keywords* as in training, with about a tenth of
the subwords doubled and one in ten wrong, superfluous or missing.

## Not for

Photographs, any other drawings, any other words: it has never seen them. Its scores say nothing about how a method
does on real data.
"""


def write_card(results: dict[str, dict[str, float]], facts: dict[str, Any]) -> str:
    """Fill in the card.

    Args:
        results: measured recall by split, as ``train_clip.measure`` returns it.
        facts: the values of the other fields.

    Returns:
        Markdown with a model card's header.
    """
    keys = ("text_to_image_r1", "text_to_image_r10", "image_to_text_r1", "image_to_text_r10")
    rows = [
        f"| {style} | {split} | " + " | ".join(f"{measured[f'{style}/{key}']:.1f}" for key in keys) + " |"
        for style in ("sentence", "telegram", "keywords")
        for split, measured in results.items()
    ]
    return _CARD.format(rows="\n".join(rows), **facts)


def save(
    model: CLIPModel,
    vocabulary: dict[str, int],
    merges: list[tuple[str, str]],
    results: dict[str, dict[str, float]],
    args: argparse.Namespace,
    seconds: float,
) -> None:
    """Write weights (fp16), tokenizer, image processor, card and metrics, then rename the folder into place."""
    out = args.out.resolve()
    work = out.with_name(f".{out.name}.{os.getpid()}")
    work.mkdir(parents=True)
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )
    CLIPProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(work)
    # The weights are stored in half precision and computed with in single: that is what the configuration asks for.
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, work / "model.safetensors", {"format": "pt"})
    model.config.architectures = ["CLIPModel"]
    model.config.save_pretrained(work)
    write(work / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    write(work / "merges.txt", "\n".join(["#version: 0.2", *(" ".join(merge) for merge in merges)]))
    write(work / "metrics.json", json.dumps(results, indent=1))
    facts = {
        **vars(args),
        "parameters": sum(p.numel() for p in model.parameters()) / 1e6,
        "megabytes": (work / "model.safetensors").stat().st_size / 1e6,
        "subwords": len(vocabulary),
        "minutes": seconds / 60,
        "torch": torch.__version__.partition("+")[0],
        "transformers": transformers.__version__,
        "arguments": " ".join(f"--{n.replace('_', '-')} {_argument(v)}" for n, v in vars(args).items() if n != "out"),
        **dict(zip(("sentences", "telegrams", "keywords"), (100 * share for share in args.styles), strict=True)),
    }
    write(work / "README.md", write_card(results, facts).rstrip())
    if out.exists():
        shutil.rmtree(out)
    work.rename(out)
    print(f"wrote {out}", flush=True)


def write(path: Path, text: str) -> None:
    """Write text with a newline at its end."""
    path.write_text(text + "\n", encoding="utf-8")


def _argument(value: float | list[float]) -> str:
    return " ".join(f"{number:g}" for number in value) if isinstance(value, list) else f"{value:g}"
