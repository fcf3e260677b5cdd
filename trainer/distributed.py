"""One batch over several processes: what contrastive losses and batch norm need to see of the others.

Every process computes the same loss over the rows of all, and `DistributedDataParallel` (or FSDP) averages the
processes' gradients. The functions here are scaled so that this average is the gradient that one process with the
whole batch would have.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_pairs(pairs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join the rows of all processes, in the order of their ranks; gradients flow to a process's own rows.

    The same loss must be computed from the result on every process, and the parameters' gradients averaged over the
    processes.

    Args:
        pairs: tensors `(B, ...)` by name, the same names and trailing shapes on every process; B may differ.

    Returns:
        The tensors `(sum of B, ...)`, floating-point ones in float32.
    """
    rows = {len(tensor) for tensor in pairs.values()}
    if len(rows) != 1:
        raise ValueError(f"The tensors to gather have {sorted(rows)} rows; they must all have the same number.")
    first = next(iter(pairs.values()))
    sizes = [torch.zeros(1, dtype=torch.long, device=first.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([rows.pop()], device=first.device))
    counts = [int(size) for size in sizes]
    return {
        name: _GatherRows.apply(tensor.float(), counts) if tensor.is_floating_point() else _gather_rows(tensor, counts)
        for name, tensor in pairs.items()
    }


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Sum a tensor over the processes, and in the backward pass its gradients too."""
    return _Sum.apply(tensor)


@contextmanager
def one_global_batch(model: Any) -> Iterator[None]:
    """Let a `SpeechClipPlusModel` in training see the batches of all processes, in its losses and its batch norm."""
    norm = getattr(model, "keyword_norm", None)
    model.gather_pairs = gather_pairs
    if norm is not None:
        norm.sum_over_processes = sum_over_processes
    try:
        yield
    finally:
        model.gather_pairs = None
        if norm is not None:
            norm.sum_over_processes = None


def average_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Average gradients over the processes, in one message; what has no gradient is left out."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return
    flat = torch.cat([gradient.flatten().float() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


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
