"""Train the tiny CLIP on scenes drawn and described on the spot.

Run as ``python scripts/tiny_backbones/train_clip.py OUT``. Only contents of the training split are
used. Batches are made of groups of scenes that differ in one attribute, so that every attribute counts from the start.
"""

import argparse
import json
import math
import multiprocessing
import sys
import time
from pathlib import Path

import numpy as np
import torch
from clip_captions import END, START, STYLES, build_vocabulary, worn_caption
from clip_folder import PIXEL_MEAN, PIXEL_STD, save
from torch import nn
from transformers import CLIPConfig, CLIPModel

from speechclip_plus.trainer.spoken_scenes.scenes import (
    COLOURS,
    IMAGE_SIZE,
    SHAPES,
    SIZES,
    Scene,
    sample_scenes,
    scene_words,
)

GROUP = 4


def clip_config(vocabulary: dict[str, int], width: int, image_layers: int, text_layers: int) -> CLIPConfig:
    """Configure a CLIP for images of 64 x 64 pixels in patches of 8 and for ``vocabulary``."""
    common = {"hidden_size": width, "num_attention_heads": width // 32, "hidden_act": "quick_gelu"}
    ids = {"bos_token_id": vocabulary[START], "eos_token_id": vocabulary[END], "pad_token_id": vocabulary[END]}
    return CLIPConfig(
        text_config={
            **common, **ids, "vocab_size": len(vocabulary), "intermediate_size": 4 * width,
            "num_hidden_layers": text_layers, "max_position_embeddings": 77, "projection_dim": width,
        },
        vision_config={
            **common, "image_size": IMAGE_SIZE, "patch_size": 8, "intermediate_size": 2 * width,
            "num_hidden_layers": image_layers, "projection_dim": width,
        },
        projection_dim=width,
        **ids,
    )  # fmt: skip


def _render(scenes: list[Scene]) -> np.ndarray:
    return np.stack([np.asarray(scene.draw()) for scene in scenes])


def render_images(scenes: list[Scene], processes: int) -> np.ndarray:
    """Draw all scenes: uint8 (N, 64, 64, 3)."""
    chunks = [scenes[start : start + 1000] for start in range(0, len(scenes), 1000)]
    images, began = [], time.monotonic()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for number, chunk in enumerate(pool.imap(_render, chunks), 1):
            images.append(chunk)
            if number % 10 == 0 or number == len(chunks):
                print(f"drew {min(number * 1000, len(scenes))} of {len(scenes)} images, "
                      f"{time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
    return np.concatenate(images)


class Batches:
    """Endless batches of (pixels, subword ids, contents), a part of each made of groups of near neighbours."""

    def __init__(self, scenes: list[Scene], images: np.ndarray, vocabulary: dict[str, int], args: argparse.Namespace):
        """Index the scenes by content; ``args`` gives batch, hard and seed."""
        self.scenes, self.images, self.vocabulary, self.args = scenes, images, vocabulary, args
        self.rng = np.random.default_rng(args.seed)
        self.drawings: dict[str, list[int]] = {}
        for index, scene in enumerate(scenes):
            self.drawings.setdefault(scene.content, []).append(index)
        self.numbers = {content: number for number, content in enumerate(self.drawings)}

    def neighbour(self, scene: Scene) -> int | None:
        """Index of a training scene that is hard to tell from ``scene``, None if the one thought of is held out.

        Either one attribute is another, or the same words belong together in another way: what was exchanged between
        the two objects (sizes, colours, shapes), the relation, or several of these. The latter are what a reader of
        bags of words takes for the same.
        """
        rng = self.rng
        first, second, relation = scene.content.split("|")
        objects = [first.split(), second.split()]  # size, colour, shape of each
        if rng.random() < 0.4:
            which, attribute = int(rng.integers(2)), int(rng.integers(3))
            options = (tuple(SIZES), tuple(COLOURS), SHAPES)[attribute]
            objects[which][attribute] = options[int(rng.integers(len(options)))]
        else:
            changes = int(rng.integers(1, 16))
            for attribute in range(3):
                if changes >> attribute & 1:
                    left, right = objects
                    left[attribute], right[attribute] = right[attribute], left[attribute]
            if changes & 8:
                relation = "above" if relation == "left" else "left"
        words = [" ".join(objects[0]), " ".join(objects[1]), relation]
        drawings = self.drawings.get("|".join(words))
        return None if drawings is None else drawings[int(rng.integers(len(drawings)))]

    def draw(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return pixels (B, 3, 64, 64) float32, ids (B, L) int64 and content numbers (B,) int64."""
        rng, args = self.rng, self.args
        indices: list[int] = []
        while len(indices) < args.batch:
            indices.append(int(rng.integers(len(self.scenes))))
            if rng.random() < args.hard:
                anchor = self.scenes[indices[-1]]
                indices += [n for n in (self.neighbour(anchor) for _ in range(GROUP - 1)) if n is not None]
        indices = indices[: args.batch]
        styles = rng.choice(len(STYLES), args.batch, p=args.styles)
        captions = [
            worn_caption(self.scenes[n], rng, STYLES[s], self.vocabulary) for n, s in zip(indices, styles, strict=True)
        ]
        pixels = to_pixels(shifted(self.images[indices], rng))
        contents = torch.tensor([self.numbers[self.scenes[n].content] for n in indices])
        return pixels, padded(captions, self.vocabulary), contents


def shifted(images: np.ndarray, rng: np.random.Generator, reach: int = 2) -> np.ndarray:
    """Shift each image by up to ``reach`` pixels, repeating its border: the pool of drawings is finite."""
    wide = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    places = rng.integers(0, 2 * reach + 1, (len(images), 2))
    size = images.shape[1]
    return np.stack([p[y : y + size, x : x + size] for p, (y, x) in zip(wide, places, strict=True)])


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """Scale uint8 (B, H, W, 3) to what the image processor gives: float32 (B, 3, H, W)."""
    return (torch.tensor(images).permute(0, 3, 1, 2).float() / 255 - PIXEL_MEAN) / PIXEL_STD


def padded(captions: list[list[int]], vocabulary: dict[str, int]) -> torch.Tensor:
    """Put start and end around each caption and pad with end: int64 (B, L)."""
    length = max(map(len, captions)) + 2
    start, end = vocabulary[START], vocabulary[END]
    return torch.tensor([[start, *ids, *[end] * (length - 1 - len(ids))] for ids in captions])


def embed_images(model: CLIPModel, pixels: torch.Tensor) -> torch.Tensor:
    """Unit-length image embeddings (B, P)."""
    return nn.functional.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)


def embed_texts(model: CLIPModel, ids: torch.Tensor) -> torch.Tensor:
    """Unit-length text embeddings (B, P)."""
    return nn.functional.normalize(model.get_text_features(input_ids=ids).pooler_output, dim=-1)


def contrastive_loss(
    model: CLIPModel, pixels: torch.Tensor, ids: torch.Tensor, contents: torch.Tensor
) -> torch.Tensor:
    """Symmetric cross-entropy; other drawings of the same content are no negatives."""
    # Chunks keep the tensors of the image tower in the processor's caches and out of the slow path of malloc.
    images = torch.cat([embed_images(model, chunk) for chunk in pixels.split(64)])
    logits = model.logit_scale.exp() * embed_texts(model, ids) @ images.T  # (B, B)
    same = (contents[:, None] == contents[None, :]).fill_diagonal_(False)
    logits = logits.masked_fill(same, float("-inf"))
    target = torch.arange(len(logits))
    return (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2


@torch.no_grad()
def measure(model: CLIPModel, scenes: list[Scene], vocabulary: dict[str, int], seed: int = 0) -> dict[str, float]:
    """Retrieval on scenes: recall in percent, text to image and back, for each style of caption."""
    model.eval()
    images = _render(scenes)
    images = torch.cat([embed_images(model, to_pixels(p)) for p in np.array_split(images, -(-len(images) // 250))])
    found = {}
    for style in STYLES:
        rng = np.random.default_rng(seed)
        ids = padded([worn_caption(scene, rng, style, vocabulary) for scene in scenes], vocabulary)
        similarities = embed_texts(model, ids) @ images.T  # (texts, images)
        for direction, matrix in (("text_to_image", similarities), ("image_to_text", similarities.T)):
            right = matrix.diagonal()[:, None]
            rank = (matrix >= right).sum(1) - 1
            for k in (1, 10):
                found[f"{style}/{direction}_r{k}"] = round(100 * float((rank < k).float().mean()), 1)
    return found


def train(model: CLIPModel, batches: Batches, validation: list[Scene], args: argparse.Namespace) -> None:
    """Train with AdamW, linear warm-up and cosine decay; print loss, speed and validation recall."""
    matrices = [p for n, p in model.named_parameters() if p.ndim > 1 and "embedding" not in n]
    others = [p for n, p in model.named_parameters() if (p.ndim <= 1 or "embedding" in n) and n != "logit_scale"]
    groups = [
        {"params": matrices, "weight_decay": args.weight_decay, "speed": 1.0},
        {"params": others, "weight_decay": 0.0, "speed": 1.0},
        # Near neighbours are told apart by small differences: the temperature has to follow within hundreds of steps.
        {"params": [model.logit_scale], "weight_decay": 0.0, "speed": args.scale_speed},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    began, losses = time.monotonic(), []
    for step in range(args.steps):
        rate = min((step + 1) / args.warmup, 0.5 + 0.5 * math.cos(math.pi * step / args.steps)) * args.lr
        for group in optimizer.param_groups:
            group["lr"] = rate * group["speed"]
        model.train()
        loss = contrastive_loss(model, *batches.draw())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        losses.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == args.steps:
            spent = time.monotonic() - began
            left = spent / (step + 1) * (args.steps - step - 1)
            print(f"step {step + 1}/{args.steps} loss {np.mean(losses[-50:]):.3f} scale {model.logit_scale.exp():.1f} "
                  f"{spent:.0f} s spent, {left:.0f} s left", flush=True)  # fmt: skip
        if (step + 1) % args.evaluate_every == 0:
            print("validation", measure(model, validation, batches.vocabulary), flush=True)


def main(argv: list[str] | None = None) -> int:
    """Train, measure and write a folder that ``CLIPModel`` and ``CLIPProcessor`` load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write; replaced if it is there")
    parser.add_argument("--start-from", type=Path, help="folder of an earlier stage, whose weights to go on with")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--images", type=int, default=51498, help="drawings held in memory (12 kB each)")
    parser.add_argument("--hard", type=float, default=0.5, help="share of scenes that bring near neighbours along")
    parser.add_argument("--styles", type=float, nargs=3, default=[0.4, 0.2, 0.4], help=f"shares of {STYLES}")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--scale-speed", type=float, default=10.0, help="learning rate of the temperature, times --lr")
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--image-layers", type=int, default=4)
    parser.add_argument("--text-layers", type=int, default=3)
    parser.add_argument("--evaluate-every", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    began = time.monotonic()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    vocabulary, merges = build_vocabulary(scene_words())
    model = CLIPModel(clip_config(vocabulary, args.width, args.image_layers, args.text_layers))
    earlier = []
    if args.start_from is not None:
        model.load_state_dict(CLIPModel.from_pretrained(args.start_from, dtype=torch.float32).state_dict())
        earlier = json.loads((args.start_from / "training.json").read_text(encoding="utf-8"))
    size = sum(p.numel() for p in model.parameters())
    print(f"{size / 1e6:.2f} M parameters, {len(vocabulary)} subwords; {args.steps} steps of {args.batch} pairs. "
          f"Budget on two free cores: {args.images / 600:.0f} s of drawing, {args.steps * args.batch / 256:.0f} s"
          " of training.", flush=True)  # fmt: skip
    scenes = sample_scenes("train", args.images, args.seed)
    batches = Batches(scenes, render_images(scenes, args.threads), vocabulary, args)
    train(model, batches, sample_scenes("validation", 500, 1), args)
    model.half().float()  # what is shipped is fp16, so that is what is measured
    results = {split: measure(model, sample_scenes(split, 500, 1), vocabulary) for split in ("validation", "test")}
    print(json.dumps(results, indent=1), flush=True)
    options = {name: value for name, value in vars(args).items() if name not in ("out", "start_from")}
    stages = [*earlier, {**options, "minutes": round((time.monotonic() - began) / 60, 1)}]
    save(args.out, model, vocabulary, merges, results, stages)
    return 0


if __name__ == "__main__":
    sys.exit(main())
