"""Retrieval and keyword metrics, exact and in bounded memory.

Nothing here knows about models or data sets: embeddings and ids go in, percentages come out. The full similarity
matrix is never held: 25,000 utterances against 5,000 images take seconds and well under 1 GB.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

CONVENTIONS = ("content", "original")

# Scores are accumulated in float64, where equal vectors may still differ in the last bit (a matrix product sums in
# another order at the edges of its blocks). Scores this close, relative to the vectors' lengths, are ties.
_TIE_MARGIN = 1e-12
_CHUNK_BYTES = 32 * 2**20


def retrieval_recall(
    speech_embeds: Tensor,
    image_embeds: Tensor,
    speech_image_ids: Tensor,
    image_ids: Tensor,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Recall at k, median and mean rank, from speech to images and from images to speech.

    Speech to image: every utterance has one right image. Image to speech: an image is found at the rank of the best
    of its utterances; images without an utterance are searched among but are no queries. A rank is 1 plus the number
    of wrong items that score *at least* as high, so ties count against the model.

    Args:
        speech_embeds: (S, P), one row per utterance. Scores are dot products: give unit-length rows for cosines.
        image_embeds: (I, P), one row per image. An image may be given several times (once per caption); its rows
            must then be equal, and it is counted once.
        speech_image_ids: (S,) integers, the id of each utterance's image.
        image_ids: (I,) integers, the id of each image.
        ks: the cut-offs.

    Returns:
        `{direction}_R@{k}` in percent, `{direction}_median_rank` and `{direction}_mean_rank` (from 1) for the
        directions `speech_to_image` and `image_to_speech`, and `mean_R@{k}`, the mean of both directions.

    Raises:
        ValueError: for empty or mismatched input, values that are not finite, an utterance whose image is missing,
            and an image id that stands for two different images.

    Example:
        >>> speech = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> scores = retrieval_recall(speech, images, torch.tensor([7, 7, 9]), torch.tensor([7, 9]), ks=(1,))
        >>> round(scores["speech_to_image_R@1"], 1), scores["image_to_speech_R@1"]
        (66.7, 100.0)
    """
    ks, speech_embeds, image_embeds, speech_image_ids, image_ids = checked_pairs(
        speech_embeds, image_embeds, speech_image_ids, image_ids, ks
    )
    image_embeds, image_ids = unique_images(image_embeds, image_ids)
    speech_ranks, image_ranks = retrieval_ranks(speech_embeds, image_embeds, speech_image_ids, image_ids)

    scores: dict[str, float] = {}
    for direction, ranks in (("speech_to_image", speech_ranks), ("image_to_speech", image_ranks)):
        for k in ks:
            scores[f"{direction}_R@{k}"] = 100.0 * (ranks <= k).double().mean().item()
        scores[f"{direction}_median_rank"] = _median(ranks)
        scores[f"{direction}_mean_rank"] = ranks.double().mean().item()
    for k in ks:
        scores[f"mean_R@{k}"] = (scores[f"speech_to_image_R@{k}"] + scores[f"image_to_speech_R@{k}"]) / 2
    return scores


def retrieval_ranks(
    speech_embeds: Tensor, image_embeds: Tensor, speech_image_ids: Tensor, image_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Rank of the right image for every utterance, and of the best right utterance for every image that has one.

    Args:
        speech_embeds: (S, P).
        image_embeds: (I, P), each image once.
        speech_image_ids: (S,) ids of the utterances' images, each of them in `image_ids`.
        image_ids: (I,) ids, all different.

    Returns:
        Two int64 tensors on the CPU, from 1: (S,) in the order of the utterances, and (I',) in the order of those
        images that have an utterance.
    """
    speech, images, targets, right = _right_scores(speech_embeds, image_embeds, speech_image_ids, image_ids)
    best = torch.full((1, len(images)), -torch.inf, dtype=right.dtype, device=right.device)
    best[0].scatter_reduce_(0, targets, right, "amax")  # (1, I) score of each image's best utterance
    speech_wrong, image_wrong = _wrong_above(speech, images, targets, right, best)
    return 1 + speech_wrong.cpu(), 1 + image_wrong[best > -torch.inf].cpu()


def all_ranks(
    speech_embeds: Tensor, image_embeds: Tensor, speech_image_ids: Tensor, image_ids: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rank of every right answer: of the image for its utterance, and of every utterance for its image.

    Args:
        speech_embeds: (S, P).
        image_embeds: (I, P), each image once.
        speech_image_ids: (S,) ids of the utterances' images, each of them in `image_ids`.
        image_ids: (I,) ids, all different.

    Returns:
        Three int64 tensors (S,) on the CPU, in the order of the utterances: the rank, from 1, of each one's image;
        each utterance's rank when its image searches; and its place, from 1, among the utterances of its image.
    """
    speech, images, targets, right = _right_scores(speech_embeds, image_embeds, speech_image_ids, image_ids)
    order = right.argsort(descending=True, stable=True)
    order = order[targets[order].argsort(stable=True)]  # by image, the best utterance first
    counts = targets.bincount(minlength=len(images))  # (I,) utterances of each image
    places = torch.empty_like(targets)
    rows = torch.arange(len(targets), device=targets.device)
    places[order] = rows - (counts.cumsum(0) - counts)[targets[order]]
    thresholds = torch.full((int(counts.max()), len(images)), torch.inf, dtype=right.dtype, device=right.device)
    thresholds[places, targets] = right  # (most utterances of an image, I)
    speech_wrong, image_wrong = _wrong_above(speech, images, targets, right, thresholds)
    return 1 + speech_wrong.cpu(), (1 + places + image_wrong[places, targets]).cpu(), 1 + places.cpu()


def _right_scores(
    speech_embeds: Tensor, image_embeds: Tensor, speech_image_ids: Tensor, image_ids: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings in float64, and for each utterance the row of its image (S,) and their score (S,)."""
    targets = _positions(speech_image_ids, image_ids)
    speech, images = _double(speech_embeds), _double(image_embeds)
    targets = targets.to(speech.device)
    chunk = max(1, _CHUNK_BYTES // (8 * len(images)))
    right = torch.cat(
        [(speech[i : i + chunk] * images[targets[i : i + chunk]]).sum(-1) for i in range(0, len(speech), chunk)]
    )
    return speech, images, targets, right


def _wrong_above(
    speech: Tensor, images: Tensor, targets: Tensor, right: Tensor, thresholds: Tensor
) -> tuple[Tensor, Tensor]:
    """Count wrong images that reach each utterance's score `right` (S,), and wrong utterances that reach `thresholds`.

    Returns:
        (S,), and for thresholds (M, I), M for each image, (M, I).
    """
    margin = _TIE_MARGIN * (speech.norm(dim=-1).max() * images.norm(dim=-1).max()).item()
    chunk = max(1, _CHUNK_BYTES // (8 * len(images)))
    speech_wrong = torch.empty_like(targets)
    image_wrong = torch.zeros(thresholds.shape, dtype=torch.long, device=thresholds.device)
    for start in range(0, len(speech), chunk):
        rows = slice(start, start + chunk)
        scores = speech[rows] @ images.T  # (chunk, I)
        # Only wrong answers can push the right one down; an image's other utterances are no competitors.
        scores.scatter_(1, targets[rows, None], -torch.inf)
        speech_wrong[rows] = (scores >= right[rows, None] - margin).sum(1)
        for level, threshold in enumerate(thresholds):
            image_wrong[level] += (scores >= threshold - margin).sum(0)
    return speech_wrong, image_wrong


def unique_images(image_embeds: Tensor, image_ids: Tensor, tolerance: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Keep each image once, in ascending order of ids.

    Args:
        image_embeds: (I, P).
        image_ids: (I,) integers.
        tolerance: how far the elements of two rows with the same id may differ (rounding between batches).

    Returns:
        The first row of every id, (I', P), and the ids, (I',).

    Raises:
        ValueError: if two rows with the same id differ by more than `tolerance`.

    Example:
        >>> unique_images(torch.tensor([[1.0], [2.0], [1.0]]), torch.tensor([5, 3, 5]))
        (tensor([[2.],
                [1.]]), tensor([3, 5]))
    """
    ids, group = torch.unique(image_ids, return_inverse=True)  # (I',), (I,)
    rows = torch.arange(len(image_ids), device=image_ids.device)
    first = torch.full_like(ids, len(image_ids)).scatter_reduce(0, group, rows.to(ids.dtype), "amin").long()
    kept = image_embeds[first]
    if len(ids) < len(image_ids):
        difference = (image_embeds - kept[group]).abs().amax(-1)
        worst = int(difference.argmax())
        if difference[worst] > tolerance:
            raise ValueError(
                f"Image id {int(image_ids[worst])} stands for two different images: rows {int(first[group[worst]])} "
                f"and {worst} differ by {difference[worst].item():.3g}. Equal ids must have equal features; give "
                "every image an id of its own."
            )
    return kept, ids


def keyword_hit_rate(
    keyword_ids: Tensor,
    keyword_lengths: Tensor,
    gold_ids: Sequence[Collection[int] | None] | Tensor,
    special_ids: Collection[int],
    convention: str = "content",
) -> dict[str, float | list[float]]:
    """How many of the keywords are in the caption.

    A keyword hits if it, or any of its nearest subwords when several are given, is one of the caption's subwords.
    Every utterance contributes the share of its keywords that hit, averaged over utterances; with a fixed number of
    keywords this equals the mean over places of the share of utterances with a hit.

    Args:
        keyword_ids: (B, N) subword ids, or (B, N, k) ids of each keyword's k nearest subwords.
        keyword_lengths: (B,) number of keywords, each between 1 and N; what follows is ignored.
        gold_ids: per utterance the subword ids of its caption, or None where there is no caption (left out); or a
            (B, L) tensor padded with negative ids.
        special_ids: ids of start, end and padding.
        convention: "content" never counts a special subword as gold; "original" always does, as the authors' code.

    Returns:
        `hit_rate` in percent, and `hit_rate_by_place`, in percent for each of the N places over the utterances that
        have a keyword there.

    Raises:
        ValueError: for shapes that do not agree, lengths outside 1..N, an unknown convention, or no caption at all.

    Example:
        >>> ids = torch.tensor([[320, 7], [11, 9]])
        >>> keyword_hit_rate(ids, torch.tensor([2, 1]), [{320, 5}, {9}], special_ids={7})
        {'hit_rate': 25.0, 'hit_rate_by_place': [50.0, 0.0]}
        >>> keyword_hit_rate(ids, torch.tensor([2, 1]), [{320, 5}, {9}], special_ids={7}, convention="original")
        {'hit_rate': 50.0, 'hit_rate_by_place': [50.0, 100.0]}
    """
    shares, by_place = keyword_hits(keyword_ids, keyword_lengths, gold_ids, special_ids, convention)
    return {
        "hit_rate": 100.0 * shares.mean().item(),
        "hit_rate_by_place": [100.0 * share for share in by_place.tolist()],
    }


def keyword_hits(
    keyword_ids: Tensor,
    keyword_lengths: Tensor,
    gold_ids: Sequence[Collection[int] | None] | Tensor,
    special_ids: Collection[int],
    convention: str = "content",
) -> tuple[Tensor, Tensor]:
    """What `keyword_hit_rate`, which takes the same arguments and raises the same errors, is the mean of.

    Returns:
        The share of keywords that hit of each utterance that has a caption (B',), and for each place the share of
        utterances with a keyword there that hit (N,); float64, from 0 to 1.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}; got {convention!r}.")
    neighbours = keyword_ids.unsqueeze(-1) if keyword_ids.dim() == 2 else keyword_ids  # (B, N, k)
    if neighbours.dim() != 3 or len(neighbours) == 0:
        raise ValueError(f"keyword_ids must be (B, N) or (B, N, k) with B > 0; got shape {tuple(keyword_ids.shape)}.")
    num_utterances, num_places, _ = neighbours.shape
    if len(keyword_lengths) != num_utterances or len(gold_ids) != num_utterances:
        raise ValueError(
            f"{num_utterances} utterances have keywords, {len(keyword_lengths)} have lengths and {len(gold_ids)} have "
            "captions; all three must be the same utterances."
        )
    lengths = keyword_lengths.cpu()
    if int(lengths.min()) < 1 or int(lengths.max()) > num_places:
        raise ValueError(
            f"keyword_lengths must lie in 1..{num_places}; got {int(lengths.min())}..{int(lengths.max())}."
        )

    if isinstance(gold_ids, Tensor):
        gold_ids = [[i for i in row if i >= 0] for row in gold_ids.tolist()]
    captioned = torch.tensor([gold is not None for gold in gold_ids])
    if not captioned.any():
        raise ValueError("No utterance has a caption, so there is nothing to compare its keywords with.")
    special = set(special_ids)
    gold_sets = [
        set(gold or ()) | special if convention == "original" else set(gold or ()) - special for gold in gold_ids
    ]

    # Membership in the utterance's own set, for all at once: an (utterance, subword) pair becomes one integer.
    width = 1 + max(int(neighbours.max()), max((max(gold, default=0) for gold in gold_sets), default=0))
    pairs = torch.tensor([row * width + i for row, gold in enumerate(gold_sets) for i in gold], dtype=torch.long)
    neighbours = neighbours.cpu().long()
    keys = torch.arange(num_utterances)[:, None, None] * width + neighbours  # (B, N, k)
    hits = (torch.isin(keys, pairs) & (neighbours >= 0)).any(-1)  # (B, N)
    real = torch.arange(num_places) < lengths[:, None]  # (B, N)

    hits, real = (hits & real)[captioned], real[captioned]
    shares = hits.sum(1).double() / real.sum(1)
    by_place = hits.sum(0).double() / real.sum(0).clamp(min=1)
    return shares, by_place[: int(lengths[captioned].max())]


def nearest_subwords(subword_ids: Tensor, table: Tensor, k: int, vocabulary_ids: Tensor | None = None) -> Tensor:
    """The k subwords whose embeddings have the highest cosine with those of the given subwords.

    Args:
        subword_ids: integers of any shape (...), negative at padding.
        table: (V, E) CLIP's subword embeddings.
        k: number of neighbours, the subword itself first.
        vocabulary_ids: (R,) ids to choose among; all V if None.

    Returns:
        int64 of shape (..., k), -1 where the given id is negative.

    Example:
        >>> table = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> nearest_subwords(torch.tensor([0, 2, -1]), table, k=2)
        tensor([[ 0,  1],
                [ 2,  1],
                [-1, -1]])
    """
    candidates = torch.arange(len(table), device=table.device) if vocabulary_ids is None else vocabulary_ids
    candidates = candidates.to(table.device).long()
    if not 1 <= k <= len(candidates):
        raise ValueError(f"k must be between 1 and the {len(candidates)} subwords of the vocabulary; got {k}.")
    distinct, where = torch.unique(subword_ids.to(table.device).clamp(min=0), return_inverse=True)
    units = torch.nn.functional.normalize(table[candidates].detach().float(), dim=-1)  # (R, E)
    chunk = max(1, _CHUNK_BYTES // (4 * len(candidates)))
    found = []
    for part in distinct.split(chunk):
        queries = torch.nn.functional.normalize(table[part].detach().float(), dim=-1)
        cosines = queries @ units.T  # (chunk, R)
        cosines[part[:, None] == candidates] = 2.0  # the subword itself is first, also among equal embeddings
        found.append(candidates[cosines.topk(k, dim=-1).indices])
    neighbours = torch.cat(found)[where]  # (..., k)
    return neighbours.masked_fill((subword_ids.to(table.device) < 0).unsqueeze(-1), -1)


def checked_pairs(
    speech_embeds: Tensor, image_embeds: Tensor, speech_image_ids: Tensor, image_ids: Tensor, ks: Sequence[int]
) -> tuple[tuple[int, ...], Tensor, Tensor, Tensor, Tensor]:
    """Return the cut-offs and the four tensors of a retrieval, or raise ValueError if they do not fit together."""
    ks = _checked_cutoffs(ks)
    speech_embeds, speech_image_ids = _checked_embeddings(speech_embeds, speech_image_ids, "speech")
    image_embeds, image_ids = _checked_embeddings(image_embeds, image_ids, "image")
    if speech_embeds.shape[1] != image_embeds.shape[1]:
        raise ValueError(
            f"speech_embeds have width {speech_embeds.shape[1]} and image_embeds {image_embeds.shape[1]}; both must "
            "be embeddings in the same space."
        )
    return ks, speech_embeds, image_embeds, speech_image_ids, image_ids


def _checked_cutoffs(ks: Sequence[int]) -> tuple[int, ...]:
    if not ks or any(not isinstance(k, int) or isinstance(k, bool) or k < 1 for k in ks):
        raise ValueError(f"ks must be one or more whole numbers from 1, such as (1, 5, 10); got {ks!r}.")
    return tuple(ks)


def _checked_embeddings(embeds: Tensor, ids: Tensor, what: str) -> tuple[Tensor, Tensor]:
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


def _median(ranks: Tensor) -> float:
    ordered = ranks.sort().values
    middle = (len(ordered) - 1) // 2
    return (ordered[middle].item() + ordered[len(ordered) // 2].item()) / 2
