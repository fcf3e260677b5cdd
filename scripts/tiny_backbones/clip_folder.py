"""The folder of the tiny CLIP: weights, tokenizer, image processor, and a card with what was measured."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from speechclip_plus.trainer.spoken_scenes.scenes import IMAGE_SIZE

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
world: images of two coloured shapes on a background, and the English captions of
`speechclip_plus.trainer.spoken_scenes.scenes`. It stands in for a real CLIP wherever no download is possible: tests,
and the package's quickstart.

- Image tower: 64 x 64 pixels in patches of 8, {image_layers} layers, width {width}. Text tower: causal, {text_layers}
  layers, width {width}, 77 places. Joint space: {width}. Quick GELU.
- Subwords: {subwords}, byte-level BPE with CLIP's conventions. Every word of the captions is one subword; other text
  falls apart into bytes, whose embeddings were trained on nothing but noise.

## How it was made

```
{commands}
```

{steps} steps of {batch} pairs with the symmetric contrastive loss, AdamW, on {images} drawings of training scenes
(two drawings of the same content are no negatives of each other), {minutes:.0f} minutes on two shared CPU cores with
torch {torch} and transformers {transformers}. Part of each batch are near neighbours: scenes that differ in one
attribute or in the order of the objects. Since it is to be read by *keywords*, {sentence:.0f} % of the training
captions of the last stage were complete, {telegram:.0f} % had lost function words, and {keywords:.0f} % moreover had
subwords doubled, wrong, superfluous or missing.

## Measured

Recall in percent among 500 scenes whose content (objects and relation) is in no training image; chance is 0.2 and 2.

| captions | split | text to image R@1 | R@10 | image to text R@1 | R@10 |
|---|---|---|---|---|---|
{rows}

Captions: *sentence* complete; *telegram* without most function words; *keywords* as in training, with about a tenth of
the subwords doubled and one in ten wrong, superfluous or missing.

## Not for

Photographs, any other drawings, any other words: it has never seen them. Its scores say nothing about how a method
does on real data. Nor for telling sides: it knows what is in an image far better than what stands left of what.
"""


def write_card(results: dict[str, dict[str, float]], stages: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Fill in the card.

    Args:
        results: measured recall by split, as ``train_clip.measure`` returns it.
        stages: options and minutes of each stage of training.
        facts: the values of the fields that describe the model.

    Returns:
        Markdown with a model card's header.
    """
    keys = ("text_to_image_r1", "text_to_image_r10", "image_to_text_r1", "image_to_text_r10")
    rows = [
        f"| {style} | {split} | " + " | ".join(f"{measured[f'{style}/{key}']:.1f}" for key in keys) + " |"
        for style in ("sentence", "telegram", "keywords")
        for split, measured in results.items()
    ]
    last = stages[-1]
    return _CARD.format(
        rows="\n".join(rows),
        commands="\n".join(_command(number, stage) for number, stage in enumerate(stages, 1)),
        steps=" + ".join(str(stage["steps"]) for stage in stages),
        batch=last["batch"],
        images=last["images"],
        minutes=sum(stage["minutes"] for stage in stages),
        **dict(zip(("sentence", "telegram", "keywords"), (100 * share for share in last["styles"]), strict=True)),
        **facts,
    )


def save(
    out: Path,
    model: CLIPModel,
    vocabulary: dict[str, int],
    merges: list[tuple[str, str]],
    results: dict[str, dict[str, float]],
    stages: list[dict[str, Any]],
) -> None:
    """Write a folder that ``CLIPModel`` and ``CLIPProcessor`` load, under a temporary name, then rename it into place.

    Args:
        out: the folder; what is there is replaced.
        model: the trained model; its weights are stored in half precision.
        vocabulary: entry to id.
        merges: BPE merges in order.
        results: measured recall by split, kept in ``metrics.json`` and shown in the card.
        stages: options and minutes of each stage of training, kept in ``training.json`` and shown in the card.
    """
    out = out.resolve()
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
    model.config.architectures, model.config.dtype = ["CLIPModel"], "float32"
    model.config.save_pretrained(work)
    write(work / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    write(work / "merges.txt", "\n".join(["#version: 0.2", *(" ".join(merge) for merge in merges)]))
    write(work / "metrics.json", json.dumps(results, indent=1))
    write(work / "training.json", json.dumps(stages, indent=1))
    text, vision = model.config.text_config, model.config.vision_config
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()) / 1e6,
        "megabytes": (work / "model.safetensors").stat().st_size / 1e6,
        "subwords": len(vocabulary),
        "width": text.hidden_size,
        "text_layers": text.num_hidden_layers,
        "image_layers": vision.num_hidden_layers,
        "torch": torch.__version__.partition("+")[0],
        "transformers": transformers.__version__,
    }
    write(work / "README.md", write_card(results, stages, facts).rstrip())
    if out.exists():
        shutil.rmtree(out)
    work.rename(out)
    print(f"wrote {out}", flush=True)


def write(path: Path, text: str) -> None:
    """Write text with a newline at its end."""
    path.write_text(text + "\n", encoding="utf-8")


def _command(number: int, stage: dict[str, Any]) -> str:
    """The command line that repeats a stage."""
    options = {name: value for name, value in stage.items() if name != "minutes"}
    words = ["python scripts/tiny_backbones/train_clip.py", f"STAGE{number}"]
    if number > 1:
        words.append(f"--start-from STAGE{number - 1}")
    for name, value in options.items():
        numbers = value if isinstance(value, list) else [value]
        words.append(" ".join([f"--{name.replace('_', '-')}", *(f"{n:g}" for n in numbers)]))
    return " ".join(words)
