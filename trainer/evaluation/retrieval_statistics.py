"""Everything that is reported of a retrieval: recalls of two kinds, ranks, average precision, and intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .bootstrap import RESAMPLES, interval, resampled_means, resampled_medians
from .retrieval_metrics import all_ranks, checked_pairs, unique_images

CURVE_KS = tuple(range(1, 101))


@dataclass(frozen=True)
class RetrievalStatistics:
    """What is reported of a retrieval.

    Attributes:
        values: by name, see `retrieval_statistics`.
        intervals: bootstrap intervals (low, high) of the values, under the same names.
        curves: `speech_to_ITEM` and `ITEM_to_speech`: recall in percent at `CURVE_KS`.
        speech_ranks: (S,) rank of each utterance's item, from 1.
        item_ranks: (I',) rank of the best utterance of each item that has one, in ascending order of item ids.
    """

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    curves: dict[str, list[float]]
    speech_ranks: Tensor
    item_ranks: Tensor


def retrieval_statistics(
    speech_embeds: Tensor,
    item_embeds: Tensor,
    speech_item_ids: Tensor,
    item_ids: Tensor,
    ks: Sequence[int] = (1, 5, 10),
    item: str = "image",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> RetrievalStatistics:
    """Score a retrieval between utterances and items (images or texts) in both directions.

    Ties count against the model. See docs/metrics.md for the formulas.

    Args:
        speech_embeds: (S, P), unit length.
        item_embeds: (I, P), unit length; an item may be given several times, with equal rows.
        speech_item_ids: (S,) id of each utterance's item.
        item_ids: (I,) ids.
        ks: the cut-offs.
        item: what the items are called in the names.
        resamples: how many times the queries are drawn for the intervals.
        seed: of the draws.

    Returns:
        Values for the directions `speech_to_ITEM` and `ITEM_to_speech`: `{direction}_R@{k}`, the share of queries with
        a right answer among the first k; `{direction}_median_rank`, `{direction}_mean_rank`; `{direction}_mAP`; all
        but the ranks in percent. `mean_{ITEM}_R@{k}` is the mean of both directions (`mean_R@{k}` for images). If an
        item has several utterances also `ITEM_to_speech_mteb_R@{k}`, the share of *all* its utterances among the
        first k. Intervals draw utterances for the first direction, items for the second.

    Raises:
        ValueError: see `metrics.retrieval_recall`.
    """
    ks, speech_embeds, item_embeds, speech_item_ids, item_ids = checked_pairs(
        speech_embeds, item_embeds, speech_item_ids, item_ids, ks
    )
    item_embeds, item_ids = unique_images(item_embeds, item_ids)
    speech_ranks, own_ranks, places = all_ranks(speech_embeds, item_embeds, speech_item_ids, item_ids)
    _, groups = torch.unique(speech_item_ids.cpu(), return_inverse=True)  # (S,) which of the I' items with utterances
    item_ranks = own_ranks[places == 1][groups[places == 1].argsort()]  # (I',)

    to_item, to_speech = f"speech_to_{item}", f"{item}_to_speech"
    names = [f"R@{k}" for k in ks]
    speech_figures = {name: 100.0 * (speech_ranks <= k) for name, k in zip(names, ks, strict=True)}
    item_figures = {name: 100.0 * (item_ranks <= k) for name, k in zip(names, ks, strict=True)}
    speech_figures |= {"mean_rank": speech_ranks, "mAP": 100.0 / speech_ranks}
    item_figures |= {"mean_rank": item_ranks, "mAP": _group_means(100.0 * places / own_ranks, groups)}
    if len(item_ranks) < len(speech_ranks):
        item_figures |= {f"mteb_R@{k}": _group_means(100.0 * (own_ranks <= k), groups) for k in ks}

    values, intervals, halves = {}, {}, []
    for direction, figures, ranks, draw in (
        (to_item, speech_figures, speech_ranks, seed),
        (to_speech, item_figures, item_ranks, seed + 1),
    ):
        table = torch.stack([column.double() for column in figures.values()], dim=1)  # (Q, M)
        means, drawn = table.mean(0), resampled_means(table, resamples, draw)
        for column, name in enumerate(figures):
            values[f"{direction}_{name}"] = means[column].item()
            intervals[f"{direction}_{name}"] = interval(drawn[:, column])
        values[f"{direction}_median_rank"] = torch.quantile(ranks.double(), 0.5).item()
        intervals[f"{direction}_median_rank"] = interval(resampled_medians(ranks, resamples, draw))
        halves.append(drawn[:, : len(ks)])
    mean = "mean" if item == "image" else f"mean_{item}"
    for column, name in enumerate(names):
        values[f"{mean}_{name}"] = (values[f"{to_item}_{name}"] + values[f"{to_speech}_{name}"]) / 2
        intervals[f"{mean}_{name}"] = interval((halves[0][:, column] + halves[1][:, column]) / 2)
    return RetrievalStatistics(
        values=values,
        intervals=intervals,
        curves={to_item: _recall_curve(speech_ranks), to_speech: _recall_curve(item_ranks)},
        speech_ranks=speech_ranks,
        item_ranks=item_ranks,
    )


def _group_means(values: Tensor, groups: Tensor) -> Tensor:
    """Mean of values (S,) within each group, (G,)."""
    sums = torch.zeros(int(groups.max()) + 1, dtype=torch.float64).index_add_(0, groups, values.double())
    return sums / groups.bincount()


def _recall_curve(ranks: Tensor) -> list[float]:
    found = ranks.clamp(max=len(CURVE_KS) + 1).bincount(minlength=len(CURVE_KS) + 2)[1:-1].cumsum(0)
    return (100.0 * found.double() / len(ranks)).tolist()
