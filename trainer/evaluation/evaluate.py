"""Metrics of a whole split, from what the model gave for it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...hub_cards.results import BRANCHES
from .bootstrap import mean_interval
from .retrieval_metrics import CONVENTIONS, keyword_hits, nearest_subwords, retrieval_recall
from .retrieval_statistics import retrieval_statistics

# What evaluation keeps of the model's output, with the padding value of its second dimension.
KEPT_OUTPUTS = {
    "parallel_embeds": 0,
    "cascaded_embeds": 0,
    "image_embeds": 0,
    "keyword_ids": -1,
    "keyword_lengths": 0,
    "alpha_sums": 0,
    "target_lengths": 0,
}


def kept_outputs(outputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Select from a batch's output what `split_metrics` needs, in a type that any device can gather."""
    kept = {name: outputs.get(name) for name in KEPT_OUTPUTS}
    return {
        name: value.detach().float() if value.is_floating_point() else value.detach()
        for name, value in kept.items()
        if value is not None
    }


def join_batches(batches: Sequence[Any] | Any, padding: int = -1) -> Tensor:
    """Join batches along their first dimension, padding the second to the longest.

    Args:
        batches: a sequence of arrays or tensors (B_i, ...), or one of them.
        padding: the value to pad with; the evaluation loop's own -100 becomes it too.

    Example:
        >>> join_batches([np.array([[1, 2]]), np.array([[3]])])
        tensor([[ 1,  2],
                [ 3, -1]])
    """
    parts = [
        torch.as_tensor(np.asarray(part)) for part in (batches if isinstance(batches, (list, tuple)) else [batches])
    ]
    if parts[0].dim() == 1:
        return torch.cat(parts)
    longest = max(part.shape[1] for part in parts)
    padded = [torch.nn.functional.pad(part, (0, longest - part.shape[1]), value=padding) for part in parts]
    joined = torch.cat(padded)
    return joined if joined.is_floating_point() else joined.masked_fill(joined == -100, padding)


def join_outputs(batches: Any) -> dict[str, Tensor]:
    """Join the evaluation loop's batches (or its one joined batch) name by name."""
    batches = batches if isinstance(batches, list) else [batches]
    names = [name for name in batches[0] if all(name in batch for batch in batches)]
    return {name: join_batches([batch[name] for batch in batches], KEPT_OUTPUTS.get(name, -1)) for name in names}


def split_metrics(
    outputs: Mapping[str, Tensor],
    image_ids: Tensor,
    gold_subwords: Tensor | None,
    config: Any,
    token_embeddings: Tensor,
    hit_rate_neighbours: Sequence[int] = (1, 5),
) -> dict[str, float]:
    """Retrieval in both directions for each branch, keyword hit rates, and how CIF and the codebook were used.

    Args:
        outputs: the joined outputs of all utterances, S rows each, under the names of `KEPT_OUTPUTS`.
        image_ids: (S,) the image of each utterance. Every image is scored once.
        gold_subwords: (S, L) subword ids of the captions padded with -1. Utterances without any are left out of the
            hit rates; None leaves the hit rates out.
        config: the model's `SpeechClipPlusConfig`.
        token_embeddings: (V, E) CLIP's subword embeddings.
        hit_rate_neighbours: the k of the hit rates.

    Returns:
        `{branch}_{name}` for every name of `metrics.retrieval_recall`; `mean_R@k` of the configured
        `retrieval_branch`; `keyword_hit_rate@k` (start, end and padding excluded from the caption) and
        `keyword_hit_rate_original@k` (included, as the authors' code does), in percent; `keywords_per_utterance`;
        `cif_length_error`, the mean absolute difference between CIF's sum and the target length;
        `distinct_keywords`, the number of different subwords chosen; `utterances` and `images`, the counts.
    """
    metrics: dict[str, float] = {}
    for branch in BRANCHES:
        if f"{branch}_embeds" in outputs:
            recall = retrieval_recall(outputs[f"{branch}_embeds"], outputs["image_embeds"], image_ids, image_ids)
            metrics.update({f"{branch}_{name}": value for name, value in recall.items()})
            if branch == config.retrieval_branch:
                metrics.update({name: value for name, value in recall.items() if name.startswith("mean_R@")})
    if "keyword_ids" in outputs:
        if gold_subwords is not None:
            shares = keyword_shares(outputs, gold_subwords, config, token_embeddings, hit_rate_neighbours)
            metrics |= {name: values.mean().item() for name, values in shares.items()}
        metrics |= keyword_usage(outputs)
    metrics["utterances"] = len(image_ids)
    metrics["images"] = len(torch.unique(image_ids))
    return metrics


def split_intervals(
    outputs: Mapping[str, Tensor],
    image_ids: Tensor,
    gold_subwords: Tensor | None,
    config: Any,
    token_embeddings: Tensor,
    hit_rate_neighbours: Sequence[int] = (1, 5),
) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals (low, high) of those of `split_metrics` that have one, by the same names."""
    intervals: dict[str, tuple[float, float]] = {}
    for branch in BRANCHES:
        if f"{branch}_embeds" in outputs:
            found = retrieval_statistics(outputs[f"{branch}_embeds"], outputs["image_embeds"], image_ids, image_ids)
            intervals |= {f"{branch}_{name}": ends for name, ends in found.intervals.items()}
    if "keyword_ids" in outputs and gold_subwords is not None:
        shares = keyword_shares(outputs, gold_subwords, config, token_embeddings, hit_rate_neighbours)
        intervals |= {name: mean_interval(values) for name, values in shares.items()}
    return intervals


def keyword_usage(outputs: Mapping[str, Tensor]) -> dict[str, float]:
    """How CIF and the codebook were used, by the names of `split_metrics`."""
    ids, lengths = outputs["keyword_ids"], outputs["keyword_lengths"]
    metrics = {
        "keywords_per_utterance": lengths.double().mean().item(),
        "distinct_keywords": len(torch.unique(ids[ids >= 0])),
    }
    if "alpha_sums" in outputs and "target_lengths" in outputs:
        error = (outputs["alpha_sums"].double() - outputs["target_lengths"].double()).abs()
        metrics["cif_length_error"] = error.mean().item()
    return metrics


def keyword_shares(
    outputs: Mapping[str, Tensor],
    gold_subwords: Tensor,
    config: Any,
    token_embeddings: Tensor,
    ks: Sequence[int] = (1, 5),
) -> dict[str, Tensor]:
    """Share of the keywords that hit of each captioned utterance, in percent, under the names of the hit rates.

    Empty if no utterance has a caption. See `split_metrics` for the arguments.
    """
    special = {0, config.start_token_id, config.end_token_id}
    captions = [[i for i in row if i >= 0] or None for row in gold_subwords.tolist()]
    if not any(captions):
        return {}
    vocabulary = config.keyword_config.vocabulary_ids
    allowed = None if vocabulary is None else torch.tensor(vocabulary)
    ids, lengths = outputs["keyword_ids"].long(), outputs["keyword_lengths"].long()
    neighbours = nearest_subwords(ids, token_embeddings, max(ks), allowed).cpu()  # (S, N, k)
    shares = {}
    for k in ks:
        for convention in CONVENTIONS:
            name = "keyword_hit_rate" if convention == "content" else f"keyword_hit_rate_{convention}"
            hits, _ = keyword_hits(neighbours[..., :k], lengths, captions, special, convention)
            shares[f"{name}@{k}"] = 100.0 * hits
    return shares
