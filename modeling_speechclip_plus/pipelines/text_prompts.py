"""Texts in CLIP's space: one by one, and as prompts that stand for a class."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TEMPLATES = ("{}", "a photo of {}.", "a picture of {}.")


@torch.no_grad()
def embed_texts(model: Any, processor: Any, texts: Sequence[str], batch_size: int = 64) -> Tensor:
    """Embed texts by CLIP's text tower: (number, P) float32 on the CPU, unit length."""
    parts = []
    for start in range(0, len(texts), batch_size):
        ids = processor(text=list(texts[start : start + batch_size]), return_tensors="pt")["input_ids"]
        parts.append(model.get_text_features(ids.to(model.device)).pooler_output.float().cpu())
    return torch.cat(parts)


def class_embeddings(
    model: Any, processor: Any, class_names: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> Tensor:
    """Embed classes by what their names say in several templates.

    Args:
        model: a `SpeechClipPlusModel`.
        processor: its processor.
        class_names: at least two different ones.
        templates: texts with one `{}` for the name.

    Returns:
        (C, P): the mean of each class's text embeddings, scaled to unit length.

    Raises:
        ValueError: for fewer than two classes, repeated names, no template, or one without `{}`.
    """
    if len(class_names) < 2 or len(set(class_names)) < len(class_names):
        raise ValueError(f"Give at least two different class names; got {list(class_names)!r}.")
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        raise ValueError(f"A template has one '{{}}' where the class name goes, unlike {wrong or 'no template'!r}.")
    texts = [template.replace("{}", name) for name in class_names for template in templates]
    embeds = embed_texts(model, processor, texts).view(len(class_names), len(templates), -1)  # (C, templates, P)
    return torch.nn.functional.normalize(embeds.mean(1), dim=-1)
