"""How far a figure would move with other queries from the same source: bootstrap intervals."""

import torch
from torch import Tensor

RESAMPLES = 1000
_CHUNK_ITEMS = 4_000_000  # drawn at a time


def resampled_means(values: Tensor, resamples: int = RESAMPLES, seed: int = 0) -> Tensor:
    """Means over queries that are drawn again and again with replacement.

    Args:
        values: (Q, M), M figures of each of Q queries, which are drawn together.
        resamples: how many times Q queries are drawn, R.
        seed: of the draws; the same seed and number of queries give the same draws.

    Returns:
        (R, M) float64.
    """
    values = values.double()
    return torch.cat([counts.double() @ values / len(values) for counts in _counts(len(values), resamples, seed)])


def resampled_medians(values: Tensor, resamples: int = RESAMPLES, seed: int = 0) -> Tensor:
    """Medians (R,) of values (Q,) that are drawn with replacement, as `resampled_means` draws them."""
    values = values.double().sort().values
    middle = torch.tensor([(len(values) - 1) // 2, len(values) // 2], dtype=torch.int32)
    found = []
    for counts in _counts(len(values), resamples, seed):
        drawn = counts.cumsum(1, dtype=torch.int32)  # (chunk, Q) how many were drawn up to each of the sorted values
        places = torch.searchsorted(drawn, middle.expand(len(drawn), 2).contiguous(), right=True)
        found.append(values[places].mean(1))
    return torch.cat(found)


def interval(samples: Tensor, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval that holds the middle share of samples (R,), its ends interpolated (percentile method).

    Example:
        >>> interval(torch.arange(101.0), confidence=0.9)
        (5.0, 95.0)
    """
    outside = (1 - confidence) / 2
    low, high = torch.quantile(samples.double(), torch.tensor([outside, 1 - outside], dtype=torch.float64)).tolist()
    return round(low, 10), round(high, 10)


def mean_interval(
    values: Tensor, resamples: int = RESAMPLES, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the bootstrap interval of the mean of values (Q,)."""
    return interval(resampled_means(values[:, None], resamples, seed)[:, 0], confidence)


def _counts(num_items: int, resamples: int, seed: int):
    """Yield (chunk, Q) float32: how often each of Q items was drawn."""
    if num_items < 1 or resamples < 1:
        raise ValueError(f"Cannot draw {num_items} queries {resamples} times; both must be at least 1.")
    generator = torch.Generator().manual_seed(seed)
    chunk = max(1, _CHUNK_ITEMS // num_items)
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = torch.randint(num_items, (rows, num_items), generator=generator)
        yield torch.zeros(rows, num_items).scatter_add_(1, drawn, torch.ones(1).expand(rows, num_items))
