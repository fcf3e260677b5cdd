"""Losses, and the all-gather that gives them the in-batch negatives of all processes of a training.

Every process computes the same loss over the rows of all, and `DistributedDataParallel` averages the processes'
gradients. What is gathered or summed here is scaled so that this average is the gradient that one process with the
whole batch would have.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
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


def several_processes() -> bool:
    """Whether `torch.distributed` runs with more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_gather_rows(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join the rows of all processes, in the order of their ranks; gradients flow to a process's own rows.

    Args:
        tensors: `(B, ...)` by name, the same names and trailing shapes on every process; B may differ.

    Returns:
        The tensors `(sum of B, ...)`, floating-point ones in float32.
    """
    first = next(iter(tensors.values()))
    sizes = [torch.zeros(1, dtype=torch.long, device=first.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(first)], device=first.device))
    counts = [int(size) for size in sizes]
    return {
        name: _GatherRows.apply(tensor.float(), counts) if tensor.is_floating_point() else _gather_rows(tensor, counts)
        for name, tensor in tensors.items()
    }


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Sum a tensor over the processes, and in the backward pass its gradients too; unchanged in a single process."""
    return _Sum.apply(tensor) if several_processes() else tensor


def _gather_rows(tensor: Tensor, counts: list[int]) -> Tensor:
    # Messages must have one size: rows are added up to the longest and cut off again.
    padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor, counts: list[int]) -> Tensor:
        rank = dist.get_rank()
        ctx.own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        ctx.num_processes = len(counts)
        return _gather_rows(tensor, counts)

    @staticmethod
    def backward(ctx, grad: Tensor):
        # Each process has the whole gradient already, so nothing is sent. Times N, because the average over the
        # processes will divide by it, and each of them adds only what comes from its own rows.
        return grad[ctx.own] * ctx.num_processes, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total
