"""Contrastive and quantity losses. Pure functions; the model sums them with the configured weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(logits: Tensor, speech_ids: Tensor | None = None, image_ids: Tensor | None = None) -> Tensor:
    """Symmetric cross-entropy in which pairs of the same image are no negatives (arXiv 2210.00705, section 3.1).

    Args:
        logits: `(B, B)` scaled similarities; row `i` and column `i` belong together.
        speech_ids: `(B,)` id of the image that each utterance (row) describes.
        image_ids: `(B,)` ids of the images (columns); those of the rows if not given. Pairs off the diagonal that
            share an id are left out of the denominators.

    Returns:
        A scalar, float32: the mean of both directions.

    Example:
    ```python
    >>> contrastive_loss(torch.eye(2) * 100).item() < 1e-6
    True

    ```
    """
    logits = logits.float()
    if speech_ids is not None:
        image_ids = speech_ids if image_ids is None else image_ids
        same = speech_ids[:, None] == image_ids[None, :]
        same.fill_diagonal_(False)
        logits = logits.masked_fill(same, -torch.inf)
    targets = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def quantity_loss(alpha_sums: Tensor, target_lengths: Tensor) -> Tensor:
    """Mean absolute difference of CIF's unscaled weight sums `(B,)` and the target numbers of keywords `(B,)`."""
    return (alpha_sums.float() - target_lengths.float()).abs().mean()
