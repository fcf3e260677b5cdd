"""Keyword metrics: hit rates as the papers define them, and this package's own; docs/metrics.md has the formulas.

The papers name word-level and subword-level extraction and duplicate keywords, but no published code defines them.
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from functools import cache
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from .retrieval_metrics import RESAMPLES, Statistics, mean_statistics

CONVENTIONS = ("content", "original")
_CHUNK_BYTES = 32 * 2**20


def keyword_hit_rate(
    keyword_ids: Tensor,
    keyword_lengths: Tensor,
    gold_ids: Sequence[Collection[int] | None] | Tensor,
    special_ids: Collection[int],
    convention: str = "content",
) -> dict[str, float | list[float]]:
    """Share of the keywords that are in the caption, averaged over utterances.

    Args:
        keyword_ids: (B, N) subword ids, or (B, N, k) ids of each keyword's k nearest subwords, any of which may hit.
        keyword_lengths: (B,) number of keywords, each between 1 and N; what follows is ignored.
        gold_ids: per utterance the subword ids of its caption, or None where there is no caption (left out); or a
            (B, L) tensor padded with negative ids.
        special_ids: ids of start, end and padding.
        convention: "content" never counts a special subword as gold; "original" always does, as the authors' code.

    Returns:
        `hit_rate` in percent, and `hit_rate_by_place` over the utterances that have a keyword there.

    Example:
        >>> ids = torch.tensor([[320, 7], [11, 9]])
        >>> keyword_hit_rate(ids, torch.tensor([2, 1]), [{320, 5}, {9}], special_ids={7})
        {'hit_rate': 25.0, 'hit_rate_by_place': [50.0, 0.0]}
        >>> keyword_hit_rate(ids, torch.tensor([2, 1]), [{320, 5}, {9}], special_ids={7}, convention="original")
        {'hit_rate': 50.0, 'hit_rate_by_place': [50.0, 100.0]}
    """
    hits = _hits(keyword_ids, keyword_lengths, gold_ids, special_ids, convention)
    by_place = [[row[place] for row in hits if place < len(row)] for place in range(max(map(len, hits)))]
    return {
        "hit_rate": _shares(hits).mean().item(),
        "hit_rate_by_place": [100.0 * sum(found) / len(found) for found in by_place],
    }


def _hits(
    keyword_ids: Tensor,
    keyword_lengths: Tensor,
    gold_ids: Sequence[Collection[int] | None] | Tensor,
    special_ids: Collection[int],
    convention: str,
) -> list[list[bool]]:
    """Whether each keyword hits, for each utterance that has a caption."""
    if convention not in CONVENTIONS:
        raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}; got {convention!r}.")
    neighbours = keyword_ids.unsqueeze(-1) if keyword_ids.dim() == 2 else keyword_ids  # (B, N, k)
    if neighbours.dim() != 3:
        raise ValueError(f"keyword_ids must be (B, N) or (B, N, k); got shape {tuple(keyword_ids.shape)}.")
    if isinstance(gold_ids, Tensor):
        gold_ids = [[i for i in row if i >= 0] for row in gold_ids.tolist()]
    special = set(special_ids)
    hits = []
    for row, caption in zip(spoken_keywords(neighbours, keyword_lengths, gold_ids), gold_ids, strict=True):
        if caption is not None:
            gold = set(caption) | special if convention == "original" else set(caption) - special
            hits.append([not gold.isdisjoint(near) for near in row])
    if not hits:
        raise ValueError("No utterance has a caption, so there is nothing to compare its keywords with.")
    return hits


def _shares(hits: list[list[bool]]) -> Tensor:
    return torch.tensor([100.0 * (sum(row) / len(row)) for row in hits], dtype=torch.float64)


def spoken_keywords(keyword_ids: Tensor, keyword_lengths: Tensor, captions: Sequence[Any]) -> list[list[Any]]:
    """Keywords (B, N, ...) of each utterance without padding, checked against their lengths (B,) and B captions."""
    lengths = keyword_lengths.tolist()
    if not 0 < len(keyword_ids) == len(lengths) == len(captions):
        raise ValueError(
            f"{len(keyword_ids)} utterances have keywords, {len(lengths)} have lengths and {len(captions)} have "
            "captions; all must be the same utterances."
        )
    if min(lengths) < 1 or max(lengths) > keyword_ids.shape[1]:
        raise ValueError(f"keyword_lengths must lie in 1..{keyword_ids.shape[1]}; got {min(lengths)}..{max(lengths)}.")
    return [row[:length] for row, length in zip(keyword_ids.tolist(), lengths, strict=True)]


def nearest_subwords(subword_ids: Tensor, table: Tensor, k: int, vocabulary_ids: Tensor | None = None) -> Tensor:
    """Find the k subwords of a vocabulary (by default all) whose embeddings are nearest by cosine to those of others.

    For ids (...), negative at padding, and the table (V, E): (..., k), each subword itself first, -1 at padding.

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


def hit_rate_shares(
    keyword_ids: Tensor,
    keyword_lengths: Tensor,
    captions: Sequence[Sequence[int] | None],
    config: Any,
    token_embeddings: Tensor,
    ks: Sequence[int],
) -> dict[str, Tensor]:
    """Share of its keywords (S, N) that hit, in percent, of each utterance that has a caption: by name (S',)."""
    special = {0, config.start_token_id, config.end_token_id}
    vocabulary = config.keyword_config.vocabulary_ids
    allowed = None if vocabulary is None else torch.tensor(vocabulary)
    neighbours = nearest_subwords(keyword_ids.long(), token_embeddings, max(ks), allowed).cpu()  # (S, N, k)
    return {
        f"{name}@{k}": _shares(_hits(neighbours[..., :k], keyword_lengths, captions, special, convention))
        for k in ks
        for name, convention in (("keyword_hit_rate", "content"), ("keyword_hit_rate_original", "original"))
    }


def chance_keyword_hit_rate(gold_ids: Sequence[Collection[int]], keyword_ids: Collection[int]) -> dict[str, float]:
    """Expected keyword hit rate (k=1) in percent, given the captions' subwords and those that may become keywords.

    `keyword_hit_rate@1` is for subwords drawn uniformly at random, `keyword_hit_rate_most_common@1` for always giving
    the subword that the most captions have.

    Example:
        >>> chance_keyword_hit_rate([{1, 2}, {2}], {1, 2, 3, 4})
        {'keyword_hit_rate@1': 37.5, 'keyword_hit_rate_most_common@1': 100.0}
    """
    allowed = set(keyword_ids)
    gold_sets = [set(gold) & allowed for gold in gold_ids]
    common = Counter(subword for gold in gold_sets for subword in gold).most_common(1)
    return {
        "keyword_hit_rate@1": 100.0 * sum(map(len, gold_sets)) / (len(gold_sets) * len(allowed)),
        "keyword_hit_rate_most_common@1": 100.0 * (common[0][1] if common else 0) / len(gold_sets),
    }


def keyword_statistics(
    keyword_ids: Tensor,
    keyword_lengths: Tensor,
    gold_subwords: Sequence[Sequence[int] | None],
    tokenizer: Any,
    usable_ids: Collection[int],
    table: Tensor,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Statistics:
    """Agreement of keywords with captions, and how they repeat themselves: our own measures of docs/metrics.md.

    Keywords (S, N) and captions are those of `keyword_hit_rate`; `usable_ids` may become keywords, and `table` (V, E)
    holds CLIP's embeddings. The seed is that of the intervals' draws and of the shuffled captions.
    """
    keywords = spoken_keywords(keyword_ids, keyword_lengths, gold_subwords)
    usable = set(usable_ids)
    chosen = {i for row in keywords for i in row}
    values = {"vocabulary_coverage": 100.0 * len(chosen & usable) / len(usable)}
    per_utterance = {"keyword_duplicates": [100.0 * (1 - len(set(row)) / len(row)) for row in keywords]}
    pairs = [(row, gold) for row, gold in zip(keywords, gold_subwords, strict=True) if gold is not None]
    if pairs:
        keywords, gold = [row for row, _ in pairs], [list(gold) for _, gold in pairs]
        said = {i for row in gold for i in row} & usable
        values["caption_coverage"] = 100.0 * len(chosen & said) / len(said) if said else 0.0
        per_utterance |= caption_agreement(keywords, gold, Spelling(tokenizer))
        per_utterance["semantic_similarity"] = semantic_similarities(keywords, gold, table)
        if len(gold) > 1:
            order = torch.randperm(len(gold), generator=torch.Generator().manual_seed(seed)).tolist()
            shuffled: list[list[int]] = [[]] * len(gold)
            for place, row in enumerate(order):  # a permutation of one cycle: nobody keeps their own caption
                shuffled[row] = gold[order[place - 1]]
            per_utterance["semantic_similarity_shuffled"] = semantic_similarities(keywords, shuffled, table)
    columns = {name: torch.tensor(figures, dtype=torch.float64) for name, figures in per_utterance.items()}
    means = mean_statistics(columns, resamples, seed)
    return Statistics(values | means.values, means.intervals)


def keyword_localization(
    keyword_ids: Sequence[Sequence[int]],
    spans: Sequence[Sequence[tuple[float, float]]],
    words: Sequence[Sequence[tuple[Collection[int], float, float]]],
) -> dict[str, float]:
    """Share of the correct keywords that are where their word is said.

    A keyword is correct if its token is one of a word of the utterance, and in place if its span covers at least half
    of such a word. Per utterance there are the tokens of its keywords (what follows the last span is ignored), start
    and end of each in seconds, and the tokens of each word, with its start and its end.

    Example:
        >>> words = [({7}, 0.0, 0.4), ({9}, 0.4, 1.0)]
        >>> keyword_localization([[7, 7, 3]], [[(0.0, 0.2), (0.2, 0.3), (0.3, 1.0)]], [words])
        {'keyword_localization': 50.0, 'keywords_correct': 2}
    """
    correct = in_place = 0
    for tokens, own_spans, own_words in zip(keyword_ids, spans, words, strict=True):
        for token, (start, end) in zip(tokens, own_spans, strict=False):
            said = [(begun, ended) for ids, begun, ended in own_words if token in ids]
            correct += bool(said)
            in_place += any(min(end, ended) - max(start, begun) >= (ended - begun) / 2 for begun, ended in said)
    return {
        "keyword_localization": 100.0 * in_place / correct if correct else math.nan,
        "keywords_correct": correct,
    }


@cache
def stop_words() -> frozenset[str]:
    """Words that `english_stop_words.txt` of this package lists."""
    file = resources.files(__package__) / "english_stop_words.txt"
    return frozenset(file.read_text(encoding="utf-8").split())


class Spelling:
    """Texts of CLIP's subwords, which end in `</w>` where a word ends, and the words that a row of them spells."""

    def __init__(self, tokenizer: Any) -> None:
        self._ends = cache(lambda subword: (tokenizer.convert_ids_to_tokens(subword) or "").endswith("</w>"))
        self._text = cache(lambda *subwords: tokenizer.decode(list(subwords)).strip().lower())

    def words(self, subwords: Sequence[int]) -> list[str]:
        """Join subwords to words; what has no letter or digit is none, and an unfinished word at the end is one."""
        words, begun = [], []
        for place, subword in enumerate(subwords):
            begun.append(subword)
            if self._ends(subword) or place == len(subwords) - 1:
                words.append(self._text(*begun))
                begun = []
        return [word for word in words if any(letter.isalnum() for letter in word)]

    def is_stop_word(self, subword: int) -> bool:
        """Whether a subword is by itself a stop word."""
        return self._ends(subword) and self._text(subword) in stop_words()


def caption_agreement(
    keywords: Sequence[Sequence[int]], gold: Sequence[Sequence[int]], spelling: Spelling
) -> dict[str, list[float]]:
    """Precision, recall and F1 of each utterance, in percent, NaN where the caption has nothing to be found.

    Args:
        keywords: subword ids of each utterance's keywords.
        gold: subword ids of each utterance's caption.
        spelling: the words that subwords spell.

    Returns:
        Under `{subword|word|content_subword|content_word}_{precision|recall|f1}` a figure for each utterance.
    """
    found: dict[str, list[float]] = {}
    for row, caption in zip(keywords, gold, strict=True):
        words, said = set(spelling.words(row)), set(spelling.words(caption))
        content = {i for i in row if not spelling.is_stop_word(i)}
        content_said = {i for i in caption if not spelling.is_stop_word(i)}
        for unit, given, wanted in (
            ("subword", set(row), set(caption)),
            ("word", words, said),
            ("content_subword", content, content_said),
            ("content_word", words - stop_words(), said - stop_words()),
        ):
            common = 100.0 * len(given & wanted)
            scores = (math.nan,) * 3  # nothing to be found
            if wanted:
                precision = common / len(given) if given else 0.0
                scores = precision, common / len(wanted), 2 * common / (len(given) + len(wanted))
            for name, score in zip(("precision", "recall", "f1"), scores, strict=True):
                found.setdefault(f"{unit}_{name}", []).append(score)
    return found


def semantic_similarities(
    keywords: Sequence[Sequence[int]], captions: Sequence[Sequence[int]], table: Tensor
) -> list[float]:
    """Mean, over each utterance's keywords, of the highest cosine in CLIP's table (V, E) with any of its caption's."""
    units = torch.nn.functional.normalize(table.detach().float().cpu(), dim=-1)
    found = []
    for given, wanted in zip(keywords, captions, strict=True):
        cosines = units[list(given)] @ units[list(wanted)].T  # (N, L)
        found.append(cosines.amax(1).mean().item() if wanted else math.nan)
    return found


def cloud_counts(
    keywords: Sequence[Sequence[int]], captions: Sequence[Collection[int] | None]
) -> dict[str, Counter[int]]:
    """Count the keywords that the caption has (`hit`), has not (`miss`), or that have no caption (`unknown`)."""
    counts: dict[str, Counter[int]] = {"hit": Counter(), "miss": Counter(), "unknown": Counter()}
    for row, caption in zip(keywords, captions, strict=True):
        for subword in row:
            counts["unknown" if caption is None else "hit" if subword in caption else "miss"][subword] += 1
    return counts
