"""Retrieval metrics of a split: ranks, recalls and average precision, with chance and confidence intervals.

Nothing here knows about models or data sets: embeddings and ids go in, percentages come out. The full similarity
matrix is never held: 25,000 utterances against 5,000 images take seconds and well under 1 GB.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import comb

import numpy as np
import torch
from torch import Tensor

RESAMPLES = 1000
CONFIDENCE = 0.95
CURVE_KS = tuple(range(1, 101))

# Scores are accumulated in float64, where equal vectors may still differ in the last bit (a matrix product sums in
# another order at the edges of its blocks). Scores this close, relative to the vectors' lengths, are ties.
_TIE_MARGIN = 1e-12
_SAME_IMAGE = 1e-3  # how far the elements of two embeddings of one image may differ
_CHUNK_BYTES = 32 * 2**20
_CHUNK_ITEMS = 4_000_000  # drawn at a time for the intervals


@dataclass(frozen=True)
class Statistics:
    """Metrics with their confidence intervals."""

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]  # (low, high) by bootstrap, of those values that have one
    ranks: dict[str, Tensor] = field(default_factory=dict)  # (Q,) from 1, by direction


def retrieval_statistics(
    speech_embeds: Tensor,
    item_embeds: Tensor,
    speech_item_ids: Tensor,
    item_ids: Tensor,
    ks: Sequence[int] = (1, 5, 10),
    item: str = "image",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Statistics:
    """Score a retrieval between utterances and items (images or texts) in both directions.

    From speech, every utterance has one right item. To speech, an item is found at the rank of the best of its
    utterances; items without an utterance are searched among but are no queries. A rank is 1 plus the number of wrong
    answers that score *at least* as high, so ties count against the model.

    Args:
        speech_embeds: (S, P), one row per utterance. Scores are dot products: give unit-length rows for cosines.
        item_embeds: (I, P). An item may be given several times (once per caption), with equal rows.
        speech_item_ids: (S,) integers, the id of each utterance's item.
        item_ids: (I,) integers, the id of each item.
        ks: the cut-offs.
        item: what the items are called in the names.
        resamples: how many times the queries are drawn for the intervals; 0 for none.
        seed: seed of the draws.

    Returns:
        Values and intervals by the names of docs/metrics.md without the branch. The ranks of the items that have an
        utterance are in ascending order of their ids.
    """
    if not ks or any(not isinstance(k, int) or isinstance(k, bool) or k < 1 for k in ks):
        raise ValueError(f"ks must be one or more whole numbers from 1, such as (1, 5, 10); got {ks!r}.")
    speech_embeds, speech_item_ids = _checked(speech_embeds, speech_item_ids, "speech")
    item_embeds, item_ids = _checked(item_embeds, item_ids, "image")
    if speech_embeds.shape[1] != item_embeds.shape[1]:
        raise ValueError(
            f"speech_embeds have width {speech_embeds.shape[1]} and image_embeds {item_embeds.shape[1]}; both must "
            "be embeddings in the same space."
        )
    item_embeds, item_ids = unique_images(item_embeds, item_ids)
    ranks = all_ranks(speech_embeds, item_embeds, speech_item_ids, item_ids)
    to_item, to_speech = f"speech_to_{item}", f"{item}_to_speech"
    best = {to_item: ranks.speech, to_speech: ranks.best_own}
    per_query = {way: {f"R@{k}": 100.0 * (own <= k) for k in ks} | {"mean_rank": own} for way, own in best.items()}
    per_query[to_item]["mAP"] = 100.0 / ranks.speech
    per_query[to_speech]["mAP"] = _group_means(100.0 * ranks.place / ranks.own, ranks.group)
    if len(ranks.best_own) < len(ranks.speech):
        per_query[to_speech] |= {f"mteb_R@{k}": _group_means(100.0 * (ranks.own <= k), ranks.group) for k in ks}

    values: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    drawn_recalls = []
    for draw, (way, columns) in enumerate(per_query.items(), seed):
        table = torch.stack([column.double() for column in columns.values()], dim=1)  # (Q, M)
        values |= {f"{way}_{name}": mean for name, mean in zip(columns, table.mean(0).tolist(), strict=True)}
        values[f"{way}_median_rank"] = torch.quantile(best[way].double(), 0.5).item()
        if resamples:
            drawn = resampled_means(table, resamples, draw)  # (R, M)
            intervals |= {f"{way}_{name}": interval(drawn[:, m]) for m, name in enumerate(columns)}
            intervals[f"{way}_median_rank"] = interval(resampled_medians(best[way], resamples, draw))
            drawn_recalls.append(drawn[:, : len(ks)])
    for m, k in enumerate(ks):
        mean = _mean_name(item, k)
        values[mean] = (values[f"{to_item}_R@{k}"] + values[f"{to_speech}_R@{k}"]) / 2
        if resamples:
            intervals[mean] = interval((drawn_recalls[0][:, m] + drawn_recalls[1][:, m]) / 2)
    return Statistics(values, intervals, best)


def retrieval_recall(
    speech_embeds: Tensor,
    image_embeds: Tensor,
    speech_image_ids: Tensor,
    image_ids: Tensor,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Recall at k, median and mean rank in both directions: those of `retrieval_statistics`, without intervals.

    Example:
        >>> speech = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> scores = retrieval_recall(speech, images, torch.tensor([7, 7, 9]), torch.tensor([7, 9]), ks=(1,))
        >>> round(scores["speech_to_image_R@1"], 1), scores["image_to_speech_R@1"]
        (66.7, 100.0)
    """
    values = retrieval_statistics(speech_embeds, image_embeds, speech_image_ids, image_ids, ks, resamples=0).values
    return {name: value for name, value in values.items() if "mteb" not in name and "mAP" not in name}


@dataclass(frozen=True)
class Ranks:
    """Ranks of all right answers, from 1: int64 on the CPU, (S,) in the order of the utterances."""

    speech: Tensor  # of each utterance's image, the utterance being the query
    own: Tensor  # of each utterance, its image being the query
    place: Tensor  # of each utterance among those of its image, the best first
    group: Tensor  # number of each utterance's image among the I' images that have an utterance

    @property
    def best_own(self) -> Tensor:
        """(I',) rank of the best utterance of each image that has one, in the order of the images."""
        first = self.place == 1
        return self.own[first][self.group[first].argsort()]


def all_ranks(speech_embeds: Tensor, image_embeds: Tensor, speech_image_ids: Tensor, image_ids: Tensor) -> Ranks:
    """Rank every right answer: the image of each of S utterances, and the utterances of I images, each there once."""
    speech, images = _double(speech_embeds), _double(image_embeds)
    targets = _positions(speech_image_ids, image_ids).to(speech.device)
    chunk = max(1, _CHUNK_BYTES // (8 * len(images)))
    right = torch.cat(
        [(speech[i : i + chunk] * images[targets[i : i + chunk]]).sum(-1) for i in range(0, len(speech), chunk)]
    )  # (S,) score of each utterance with its image
    order = right.argsort(descending=True, stable=True)
    order = order[targets[order].argsort(stable=True)]  # by image, the best utterance first
    counts = targets.bincount(minlength=len(images))  # (I,) utterances of each image
    places = torch.empty_like(targets)
    rows = torch.arange(len(targets), device=targets.device)
    places[order] = rows - (counts.cumsum(0) - counts)[targets[order]]
    thresholds = torch.full((int(counts.max()), len(images)), torch.inf, dtype=right.dtype, device=right.device)
    thresholds[places, targets] = right  # (most utterances of an image, I)

    margin = _TIE_MARGIN * (speech.norm(dim=-1).max() * images.norm(dim=-1).max()).item()
    speech_wrong = torch.empty_like(targets)
    image_wrong = torch.zeros(thresholds.shape, dtype=torch.long, device=thresholds.device)
    for start in range(0, len(speech), chunk):
        own = slice(start, start + chunk)
        scores = speech[own] @ images.T  # (chunk, I)
        # Only wrong answers can push the right one down; an image's other utterances are no competitors.
        scores.scatter_(1, targets[own, None], -torch.inf)
        speech_wrong[own] = (scores >= right[own, None] - margin).sum(1)
        for level, threshold in enumerate(thresholds):
            image_wrong[level] += (scores >= threshold - margin).sum(0)
    return Ranks(
        speech=1 + speech_wrong.cpu(),
        own=(1 + places + image_wrong[places, targets]).cpu(),
        place=1 + places.cpu(),
        group=torch.unique(targets.cpu(), return_inverse=True)[1],
    )


def recall_curve(ranks: Tensor) -> list[float]:
    """Recall in percent at each of `CURVE_KS`, of ranks (Q,)."""
    found = ranks.clamp(max=len(CURVE_KS) + 1).bincount(minlength=len(CURVE_KS) + 2)[1:-1].cumsum(0)
    return (100.0 * found.double() / len(ranks)).tolist()


def unique_images(image_embeds: Tensor, image_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Keep each image once: rows (I', P) and ids (I',), in ascending order of ids.

    Example:
        >>> unique_images(torch.tensor([[1.0], [2.0], [1.0]]), torch.tensor([5, 3, 5]))
        (tensor([[2.],
                [1.]]), tensor([3, 5]))
    """
    unique = np.unique(image_ids.cpu().numpy(), return_index=True, return_inverse=True)
    ids, first, group = (torch.from_numpy(part).to(image_ids.device) for part in unique)  # (I',), (I',), (I,)
    kept = image_embeds[first]
    difference = (image_embeds - kept[group]).abs().amax(-1)
    worst = int(difference.argmax())
    if difference[worst] > _SAME_IMAGE:
        raise ValueError(
            f"Image id {int(image_ids[worst])} stands for two different images: rows {int(first[group[worst]])} "
            f"and {worst} differ by {difference[worst].item():.3g}. Equal ids must have equal features; give "
            "every image an id of its own."
        )
    return kept, ids


def chance_recall(
    speech_item_ids: Sequence[int], item_ids: Sequence[int], ks: Sequence[int] = (1, 5, 10), item: str = "image"
) -> dict[str, float]:
    """Expected recall at k in percent, and median rank, of a random order.

    Arguments and names are those of `retrieval_statistics`.

    Example:
        >>> chance_recall([1, 1, 2, 2], [1, 2], ks=(1,))["image_to_speech_R@1"]
        50.0
    """
    num_speech, num_items = len(speech_item_ids), len(set(item_ids))
    spoken = Counter(Counter(speech_item_ids).values())  # utterances of an item -> how many items have so many
    queries = sum(spoken.values())

    def to_item(k: int) -> float:
        return min(k / num_items, 1.0)

    def to_speech(k: int) -> float:
        k = min(k, num_speech)
        missed = {own: comb(num_speech - own, k) / comb(num_speech, k) for own in spoken}
        return sum(items * (1 - missed[own]) for own, items in spoken.items()) / queries

    chance: dict[str, float] = {}
    ways = {f"speech_to_{item}": (to_item, num_items), f"{item}_to_speech": (to_speech, num_speech)}
    for way, (found, size) in ways.items():
        chance |= {f"{way}_R@{k}": 100.0 * found(k) for k in ks}
        # The first rank by which half of the queries have found theirs.
        chance[f"{way}_median_rank"] = bisect_left(range(1, size + 1), 0.5, key=found) + 1
    for k in ks:
        chance[_mean_name(item, k)] = sum(chance[f"{way}_R@{k}"] for way in ways) / 2
    return chance


def _mean_name(item: str, k: int) -> str:
    return f"mean_R@{k}" if item == "image" else f"mean_{item}_R@{k}"


# Confidence intervals


def resampled_means(values: Tensor, resamples: int = RESAMPLES, seed: int = 0) -> Tensor:
    """Bootstrap means (R, M) float64 of values (Q, M), whose rows are drawn together; equal seeds draw the same."""
    values = values.double()
    return torch.cat([counts.double() @ values / len(values) for counts in _counts(len(values), resamples, seed)])


def resampled_medians(values: Tensor, resamples: int = RESAMPLES, seed: int = 0) -> Tensor:
    """Medians (R,) of values (Q,) that are drawn with replacement, as `resampled_means` draws them."""
    values = values.double().sort().values
    middle = torch.tensor([(len(values) - 1) // 2, len(values) // 2], dtype=torch.int32)
    medians = []
    for counts in _counts(len(values), resamples, seed):
        drawn = counts.cumsum(1, dtype=torch.int32)  # (chunk, Q) how many were drawn up to each of the sorted values
        places = torch.searchsorted(drawn, middle.expand(len(drawn), 2).contiguous(), right=True)
        medians.append(values[places].mean(1))
    return torch.cat(medians)


def interval(samples: Tensor) -> tuple[float, float]:
    """Return the interval that holds the middle 95 % of samples (R,), its ends interpolated (percentile method).

    Example:
        >>> interval(torch.arange(1001.0))
        (25.0, 975.0)
    """
    outside = (1 - CONFIDENCE) / 2
    low, high = torch.quantile(samples.double(), torch.tensor([outside, 1 - outside], dtype=torch.float64)).tolist()
    return round(low, 10), round(high, 10)


def mean_statistics(columns: dict[str, Tensor], resamples: int = RESAMPLES, seed: int = 0) -> Statistics:
    """Mean over utterances of each column (S,), with its interval; NaN stands for an utterance that is left out."""
    values: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    together: dict[bytes, dict[str, Tensor]] = {}  # columns of the same utterances are drawn together
    for name, column in columns.items():
        known = ~column.isnan()
        if known.any():
            together.setdefault(known.numpy().tobytes(), {})[name] = column[known].double()
    for group in together.values():
        table = torch.stack(list(group.values()), dim=1)  # (utterances, M)
        values |= {name: table[:, m].mean().item() for m, name in enumerate(group)}
        if resamples:
            drawn = resampled_means(table, resamples, seed)
            intervals |= {name: interval(drawn[:, m]) for m, name in enumerate(group)}
    return Statistics(values, intervals)


def _counts(num_items: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """Yield (chunk, Q) float32: how often each of Q items was drawn."""
    generator = torch.Generator().manual_seed(seed)
    chunk = max(1, _CHUNK_ITEMS // num_items)
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = torch.randint(num_items, (rows, num_items), generator=generator)
        yield torch.zeros(rows, num_items).scatter_add_(1, drawn, torch.ones(1).expand(rows, num_items))


def _group_means(values: Tensor, groups: Tensor) -> Tensor:
    """Mean of values (S,) within each group, (G,)."""
    sums = torch.zeros(int(groups.max()) + 1, dtype=torch.float64).index_add_(0, groups, values.double())
    return sums / groups.bincount()


def _checked(embeds: Tensor, ids: Tensor, what: str) -> tuple[Tensor, Tensor]:
    embeds, ids = torch.as_tensor(embeds), torch.as_tensor(ids)
    if embeds.dim() != 2 or len(embeds) == 0:
        raise ValueError(f"{what}_embeds must be (number, width) with at least one row; got {tuple(embeds.shape)}.")
    if ids.shape != (len(embeds),) or ids.is_floating_point():
        raise ValueError(
            f"The {what} embeddings have {len(embeds)} rows, so their image ids must be {len(embeds)} integers; got "
            f"shape {tuple(ids.shape)} of {ids.dtype}."
        )
    finite = embeds.isfinite().all(-1)
    if not finite.all():
        raise ValueError(f"Row {int((~finite).nonzero()[0])} of {what}_embeds has NaN or infinite values.")
    return embeds, ids.to(embeds.device)


def _positions(ids: Tensor, among: Tensor) -> Tensor:
    """Row of every id in `among`, whose ids are all different."""
    order = among.argsort()
    place = torch.searchsorted(among[order], ids.to(among.device)).clamp(max=len(among) - 1)
    found = order[place]
    missing = among[found] != ids.to(among.device)
    if missing.any():
        row = int(missing.nonzero()[0])
        raise ValueError(
            f"Utterance {row} belongs to image id {int(ids[row])}, which is not among the {len(among)} images."
        )
    return found


def _double(embeds: Tensor) -> Tensor:
    return (embeds.cpu() if embeds.device.type == "mps" else embeds).detach().double()  # MPS has no float64
