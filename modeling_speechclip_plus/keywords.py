"""Keywords: projection into CLIP's token space, batch norm and quantisation (arXiv 2402.06959, section 2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cif import accumulation_dtype
from .losses import sum_over_processes


def token_text(tokenizer: Any, token_id: int) -> str:
    """Text of one token of CLIP's BPE; what is no printable text by itself, as the tokenizer writes its bytes.

    A token may be a part of a character: "ðŁ" is half of most emoji.
    """
    text = tokenizer.decode([token_id]).strip()
    if text and text.isprintable() and "\ufffd" not in text:
        return text
    return (tokenizer.convert_ids_to_tokens(token_id) or f"#{token_id}").removesuffix("</w>")


def projection_head(in_size: int, out_size: int, hidden_size: int | None, dropout: float) -> nn.Module:
    """Build a linear map, or one with a hidden ReLU layer of `hidden_size` and dropout behind it."""
    if hidden_size is None:
        return nn.Linear(in_size, out_size)
    return nn.Sequential(
        nn.Linear(in_size, hidden_size), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden_size, out_size)
    )


class KeywordBatchNorm(nn.Module):
    """Batch normalisation that puts keyword features where CLIP's token embeddings lie.

    Its statistics are kept in float32 whatever the dtype of the model. In training they are those of the batches of
    all processes where `torch.distributed` runs. Padding can be left out of them, which torch's own batch norm cannot.

    Args:
        embed_size: Width E of CLIP's token embeddings.
        num_places: Keywords per utterance, each with statistics of its own; `None` if all share one.
    """

    def __init__(self, embed_size: int, num_places: int | None = None, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.num_places = num_places
        self.eps = eps
        self.momentum = momentum
        # Channel d * K + k belongs to dimension d of place k: the layout of the published checkpoints.
        channels = embed_size * (num_places or 1)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.num_batches_tracked: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise features `(B, N, E)`; entries where the mask `(B, N)` is False stay out of the statistics."""
        batch, num_keywords, embed_size = features.shape
        # (B, N, E) -> (B, E * K) with places, (B * N, E) without: rows of channels. In float64, which costs nothing at
        # this size: the gradient through the statistics of a few rows loses three digits.
        rows = features.to(accumulation_dtype(features))
        rows = rows.reshape(-1, embed_size) if self.num_places is None else rows.transpose(1, 2).reshape(batch, -1)
        if self.training:
            mask = rows.new_ones(len(rows), 1) if mask is None else mask.reshape(-1, 1).to(rows.dtype)
            count = sum_over_processes(mask.sum()).clamp(min=1)
            mean = sum_over_processes((rows * mask).sum(dim=0)) / count
            var = sum_over_processes(((rows - mean).square() * mask).sum(dim=0)) / count
            with torch.no_grad():
                unbiased = var * count / (count - 1).clamp(min=1)
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
                self.num_batches_tracked.add_(1)
        else:
            mean, var = self.running_mean, self.running_var
        rows = (rows - mean) * (torch.rsqrt(var + self.eps) * self.weight) + self.bias
        if self.num_places is None:
            rows = rows.reshape(batch, num_keywords, embed_size)
        else:
            rows = rows.reshape(batch, embed_size, num_keywords).transpose(1, 2)
        return rows.to(features.dtype)

    def initial_values(self, embeddings: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Weight and bias from the standard deviation and mean per dimension of token embeddings `(V, E)`."""
        std, mean = torch.std_mean(embeddings.float(), dim=0)
        places = self.num_places or 1
        return (std * scale).repeat_interleave(places), mean.repeat_interleave(places)


@dataclass
class QuantizedKeywords:
    """Keywords snapped to tokens.

    Attributes:
        embeds (`Tensor` of shape `(B, N, E)`): The chosen tokens' own embeddings.
        indices (`Tensor` of shape `(B, N)`, int64): Rows of the table that were chosen.
        similarities (`Tensor` of shape `(B, N)`, float32): Cosine similarity of feature and chosen token.
    """

    embeds: Tensor
    indices: Tensor
    similarities: Tensor


def cosine_similarities(features: Tensor, table: Tensor) -> Tensor:
    """Cosine similarity of features `(..., E)` with every row of a table `(V, E)`: `(..., V)`, float32."""
    # Under autocast a matrix product would fall to half precision, and near ties with it.
    with torch.autocast(features.device.type, enabled=False):
        features = F.normalize(features.float(), dim=-1, eps=1e-8)
        return features @ F.normalize(table.float(), dim=-1, eps=1e-8).T


def quantize_keywords(
    features: Tensor,
    table: Tensor,
    allowed: Tensor | None = None,
    temperature: float = 0.1,
    straight_through: bool = True,
) -> QuantizedKeywords:
    """Replace each keyword feature by the most similar token's embedding (paper section 2.1).

    The gradient passes straight through a softmax of `similarity / temperature`, as if the softmax-weighted mean of
    the table had been returned.

    Args:
        features: `(B, N, E)`.
        table: `(V, E)` token embeddings.
        allowed: `(V,)` bool, False for tokens that are never chosen; all are allowed without it.
        temperature: Of the softmax.
        straight_through: Whether the features get that gradient; the choice alone has none, as in evaluation.
    """
    similarities = cosine_similarities(features, table)  # (B, N, V)
    if allowed is not None:
        similarities = similarities.masked_fill(~allowed, -torch.inf)
    best, indices = similarities.max(dim=-1)  # (B, N)
    if straight_through and torch.is_grad_enabled():
        probabilities = torch.softmax(similarities / temperature, dim=-1)
        embeds = _StraightThrough.apply(probabilities, table, indices)
    else:
        embeds = table[indices]
    return QuantizedKeywords(embeds=embeds.to(features.dtype), indices=indices, similarities=best)


def expected_token_embeds(features: Tensor, table: Tensor, allowed: Tensor, temperature: float = 0.1) -> Tensor:
    """Mean of the table weighted by the softmax of `similarity / temperature`; arguments as in `quantize_keywords`.

    It is what `quantize_keywords` takes the gradient of. `(B, N, E)`.
    """
    similarities = cosine_similarities(features, table).masked_fill(~allowed, -torch.inf)  # (B, N, V)
    return (torch.softmax(similarities / temperature, dim=-1) @ table.float()).to(features.dtype)


def merge_repeats(ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find runs of equal neighbouring keywords, as connectionist temporal classification reads its labels.

    Args:
        ids: `(B, N)` int64 tokens of the keywords.
        lengths: `(B,)` keywords of each utterance; what follows is no part of a run.

    Returns:
        Places `(B, N)` of the first and of the last keyword of each run, and the numbers of runs `(B,)`; behind
        those the places mean nothing.

    Example:
    ```python
    >>> merge_repeats(torch.tensor([[7, 7, 3, 7]]), torch.tensor([4]))
    (tensor([[0, 2, 3, 1]]), tensor([[1, 2, 3, 0]]), tensor([3]))

    ```
    """
    places = torch.arange(ids.shape[1], device=ids.device)
    mask = places < lengths[:, None]
    starts, ends = torch.ones_like(mask), torch.ones_like(mask)
    starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
    ends[:, :-1] = starts[:, 1:]
    ends |= places == lengths[:, None] - 1
    first, last = ((marks & mask).int().argsort(dim=1, descending=True, stable=True) for marks in (starts, ends))
    return first, last, (starts & mask).sum(dim=1)


class _StraightThrough(torch.autograd.Function):
    """`table[indices]` forward, the gradient of `probabilities @ table` backward, without computing the latter."""

    @staticmethod
    def forward(ctx, probabilities: Tensor, table: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(table, indices)
        ctx.probabilities_dtype = probabilities.dtype
        return table[indices]

    @staticmethod
    def backward(ctx, grad: Tensor):
        table, indices = ctx.saved_tensors
        grad_table = None
        if ctx.needs_input_grad[1]:
            flat = grad.reshape(-1, grad.shape[-1]).to(table.dtype)
            grad_table = torch.zeros_like(table).index_add_(0, indices.reshape(-1), flat)
        grad_probabilities = grad.to(table.dtype) @ table.T if ctx.needs_input_grad[0] else None
        if grad_probabilities is not None:
            grad_probabilities = grad_probabilities.to(ctx.probabilities_dtype)
        return grad_probabilities, grad_table, None


def code_perplexity(indices: Tensor, num_codes: int, mask: Tensor | None = None) -> Tensor:
    """Effective number of different tokens in use: the exponential of their distribution's entropy.

    Args:
        indices: `(B, N)` chosen rows.
        num_codes: Rows there are.
        mask: `(B, N)` bool, False for entries to leave out.
    """
    counted = torch.ones_like(indices, dtype=torch.float32) if mask is None else mask.float()
    counts = torch.zeros(num_codes, device=indices.device)
    counts.index_add_(0, indices.reshape(-1).clamp(min=0), counted.reshape(-1))
    return perplexity(counts)


def perplexity(counts: Tensor) -> Tensor:
    """Exponential of the entropy of a distribution, given by its counts `(V,)`."""
    shares = counts / counts.sum().clamp(min=1)
    return torch.exp(-(shares * torch.log(shares + 1e-7)).sum())
