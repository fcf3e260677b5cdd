"""This package's own measures of keywords; docs/metrics.md has the formulas.

The papers name word-level and subword-level extraction and duplicate keywords, but no published code defines them.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from .bootstrap import RESAMPLES, interval, resampled_means

TOLERANCES_MS = (20, 50, 100)
_ROUNDING = 1e-6  # seconds: a boundary exactly at the tolerance is within it


@dataclass(frozen=True)
class KeywordStatistics:
    """What is reported of keywords.

    Attributes:
        values: by name, see `keyword_statistics`.
        intervals: bootstrap intervals (low, high) of those values that are means over utterances.
    """

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]


@cache
def stop_words() -> frozenset[str]:
    """Words that `english_stop_words.txt` of this package lists."""
    file = resources.files(__package__) / "english_stop_words.txt"
    return frozenset(file.read_text(encoding="utf-8").split())


def keyword_statistics(
    keyword_ids: Tensor,
    keyword_lengths: Tensor,
    captions: Sequence[str | None] | None,
    tokenizer: Any,
    usable_ids: Collection[int],
    table: Tensor,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> KeywordStatistics:
    """Compare keywords with captions, and measure how they repeat themselves.

    Args:
        keyword_ids: (S, N) CLIP subword ids of the keywords in spoken order.
        keyword_lengths: (S,) keywords of each utterance; what follows is ignored.
        captions: of the utterances; None or "" where there is none. None if there are none at all.
        tokenizer: CLIP's.
        usable_ids: subwords that may become keywords.
        table: (V, E) CLIP's subword embeddings.
        resamples: how many times utterances are drawn for the intervals.
        seed: of the draws, and of the shuffled captions.

    Returns:
        In percent `keyword_duplicates` and `vocabulary_coverage`; over the utterances with a caption
        `{subword|word}_{precision|recall|f1}` and the same without stop words under `content_{...}`;
        `caption_coverage`; and the cosines `semantic_similarity` and `semantic_similarity_shuffled` (the latter from
        two captioned utterances on).

    Raises:
        ValueError: if utterances, lengths and captions are not equally many, or an utterance has no keyword.
    """
    lengths = keyword_lengths.tolist()
    if len(keyword_ids) != len(lengths) or (captions is not None and len(captions) != len(lengths)):
        raise ValueError(
            f"{len(keyword_ids)} utterances have keywords, {len(lengths)} have lengths and "
            f"{len(lengths) if captions is None else len(captions)} have captions; all must be the same utterances."
        )
    if not lengths or min(lengths) < 1:
        raise ValueError("Every utterance needs at least one keyword; there are none, or one has none.")
    keywords = [row[:length] for row, length in zip(keyword_ids.tolist(), lengths, strict=True)]
    usable = set(usable_ids)
    chosen = {i for row in keywords for i in row}
    values = {"vocabulary_coverage": 100.0 * len(chosen & usable) / len(usable)}
    per_utterance: dict[str, list[float]] = {
        "keyword_duplicates": [100.0 * (1 - len(set(row)) / len(row)) for row in keywords]
    }
    captioned = [row for row, caption in enumerate(captions or ()) if caption]
    if captioned and captions is not None:
        keywords = [keywords[row] for row in captioned]
        gold = tokenizer([captions[row] for row in captioned], add_special_tokens=False)["input_ids"]
        said = {i for row in gold for i in row} & usable
        values["caption_coverage"] = 100.0 * len(chosen & said) / len(said) if said else 0.0
        per_utterance |= _agreement(keywords, gold, Spelling(tokenizer))
        per_utterance["semantic_similarity"] = semantic_similarities(keywords, gold, table)
        if len(captioned) > 1:
            order = torch.randperm(len(gold), generator=torch.Generator().manual_seed(seed)).tolist()
            shuffled: list[list[int]] = [[]] * len(gold)
            for place, row in enumerate(order):  # a permutation of one cycle: nobody keeps their own caption
                shuffled[row] = gold[order[place - 1]]
            per_utterance["semantic_similarity_shuffled"] = semantic_similarities(keywords, shuffled, table)
    intervals = {}
    together: dict[bytes, dict[str, Tensor]] = {}  # figures of the same utterances, drawn together
    for name, figures in per_utterance.items():
        column = torch.tensor(figures, dtype=torch.float64)
        known = ~column.isnan()
        if known.any():
            together.setdefault(known.numpy().tobytes(), {})[name] = column[known]
    for columns in together.values():
        table = torch.stack(list(columns.values()), dim=1)  # (utterances, figures)
        drawn = resampled_means(table, resamples, seed)
        for place, name in enumerate(columns):
            values[name] = table[:, place].mean().item()
            intervals[name] = interval(drawn[:, place])
    return KeywordStatistics(values, intervals)


class Spelling:
    """Texts of CLIP's subwords, and the words that a row of them spells.

    Args:
        tokenizer: CLIP's, whose subwords end in `</w>` where a word ends.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[int, str] = {}
        self._texts: dict[tuple[int, ...], str] = {}

    def ends_word(self, subword: int) -> bool:
        """Whether a word ends with this subword."""
        if subword not in self._pieces:
            self._pieces[subword] = self._tokenizer.convert_ids_to_tokens(subword) or ""
        return self._pieces[subword].endswith("</w>")

    def text(self, *subwords: int) -> str:
        """Text of one word's subwords, in lower case."""
        if subwords not in self._texts:
            self._texts[subwords] = self._tokenizer.decode(list(subwords)).strip().lower()
        return self._texts[subwords]

    def words(self, subwords: Sequence[int]) -> list[str]:
        """Join subwords to words; what has no letter or digit is none, and an unfinished word at the end is one."""
        words, begun = [], []
        for place, subword in enumerate(subwords):
            begun.append(subword)
            if self.ends_word(subword) or place == len(subwords) - 1:
                words.append(self.text(*begun))
                begun = []
        return [word for word in words if any(letter.isalnum() for letter in word)]

    def is_stop_word(self, subword: int) -> bool:
        """Whether a subword is by itself a stop word."""
        return self.ends_word(subword) and self.text(subword) in stop_words()


def _agreement(
    keywords: Sequence[Sequence[int]], gold: Sequence[Sequence[int]], spelling: Spelling
) -> dict[str, list[float]]:
    """Precision, recall and F1 of each utterance, in percent, NaN where the caption has nothing to be found."""
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
            common = len(given & wanted)
            scores = (
                (
                    100.0 * common / len(given) if given else 0.0,
                    100.0 * common / len(wanted),
                    200.0 * common / (len(given) + len(wanted)),
                )
                if wanted
                else (math.nan,) * 3
            )
            for name, score in zip(("precision", "recall", "f1"), scores, strict=True):
                found.setdefault(f"{unit}_{name}", []).append(score)
    return found


def semantic_similarities(
    keywords: Sequence[Sequence[int]], captions: Sequence[Sequence[int]], table: Tensor
) -> list[float]:
    """Mean, over an utterance's keywords, of the highest cosine with any subword of its caption.

    Args:
        keywords: subword ids of each utterance's keywords.
        captions: subword ids of each utterance's caption.
        table: (V, E) CLIP's subword embeddings.

    Returns:
        One cosine per utterance; NaN where the caption is empty.
    """
    used = torch.tensor(sorted({i for rows in (keywords, captions) for row in rows for i in row}))
    units = torch.nn.functional.normalize(table[used.to(table.device)].detach().float().cpu(), dim=-1)
    place = {subword: row for row, subword in enumerate(used.tolist())}
    found = []
    for given, wanted in zip(keywords, captions, strict=True):
        if not wanted:
            found.append(math.nan)
            continue
        cosines = units[[place[i] for i in given]] @ units[[place[i] for i in wanted]].T  # (N, L)
        found.append(cosines.amax(1).mean().item())
    return found


def boundary_agreement(
    found: Sequence[Sequence[float]],
    reference: Sequence[Sequence[float]],
    tolerances_ms: Sequence[int] = TOLERANCES_MS,
) -> dict[str, float]:
    """Compare boundaries in time, as unsupervised word segmentation is scored.

    Boundaries are matched one to one within the tolerance, and counted over all utterances together. The beginnings
    and ends of utterances, which everybody knows, should be in neither list.

    Args:
        found: boundaries of each utterance, in seconds.
        reference: the true ones.
        tolerances_ms: how far apart a matched pair may be, in milliseconds.

    Returns:
        `boundary_{precision|recall|f1|r_value}@{tolerance}ms` in percent for each tolerance (the R-value of Rasanen et
        al., 2009), and `boundaries_found` and `boundaries_reference`, the counts.

    Raises:
        ValueError: if the lists are not equally long, or hold no boundaries.

    Example:
        >>> scores = boundary_agreement([[0.50, 1.00]], [[0.52, 0.80, 1.30]], tolerances_ms=(50,))
        >>> round(scores["boundary_precision@50ms"], 1), round(scores["boundary_recall@50ms"], 1)
        (50.0, 33.3)
    """
    if len(found) != len(reference):
        raise ValueError(f"{len(found)} utterances have boundaries, but {len(reference)} have reference boundaries.")
    num_found, num_reference = sum(map(len, found)), sum(map(len, reference))
    if num_reference == 0:
        raise ValueError("The reference has no boundary inside any utterance, so there is nothing to compare with.")
    scores: dict[str, float] = {}
    for tolerance in tolerances_ms:
        hits = sum(
            _matched(sorted(one), sorted(other), tolerance / 1000) for one, other in zip(found, reference, strict=True)
        )
        precision = hits / num_found if num_found else 0.0
        recall = hits / num_reference
        over = num_found / num_reference - 1  # over-segmentation
        off_target = math.hypot(1 - recall, over)
        off_line = (recall - 1 - over) / math.sqrt(2)
        for name, score in (
            ("precision", precision),
            ("recall", recall),
            ("f1", 2 * hits / (num_found + num_reference)),
            ("r_value", 1 - (off_target + abs(off_line)) / 2),
        ):
            scores[f"boundary_{name}@{tolerance}ms"] = 100.0 * score
    return scores | {"boundaries_found": num_found, "boundaries_reference": num_reference}


def _matched(one: Sequence[float], other: Sequence[float], tolerance: float) -> int:
    """Most pairs of two sorted lists that lie within the tolerance, each boundary in one pair."""
    i = j = count = 0
    while i < len(one) and j < len(other):
        if abs(one[i] - other[j]) <= tolerance + _ROUNDING:
            i, j, count = i + 1, j + 1, count + 1
        elif one[i] < other[j]:
            i += 1
        else:
            j += 1
    return count


def even_boundaries(counts: Sequence[int], seconds: Sequence[float]) -> list[list[float]]:
    """Divide utterances evenly by as many boundaries as given: what CIF's boundaries should be better than.

    Example:
        >>> even_boundaries([3], [2.0])
        [[0.5, 1.0, 1.5]]
    """
    return [
        [length * (place + 1) / (count + 1) for place in range(count)]
        for count, length in zip(counts, seconds, strict=True)
    ]


def cloud_counts(
    keywords: Sequence[Sequence[int]], captions: Sequence[Collection[int] | None]
) -> Mapping[str, dict[int, int]]:
    """Count how often each subword was a keyword that the caption has (`hit`), has not (`miss`), or without caption.

    Returns:
        `hit`, `miss` and `unknown`: subword id to count, the most frequent first.
    """
    counts: dict[str, dict[int, int]] = {"hit": {}, "miss": {}, "unknown": {}}
    for row, caption in zip(keywords, captions, strict=True):
        gold = None if caption is None else set(caption)
        for subword in row:
            kind = "unknown" if gold is None else "hit" if subword in gold else "miss"
            counts[kind][subword] = counts[kind].get(subword, 0) + 1
    return {kind: dict(sorted(count.items(), key=lambda item: (-item[1], item[0]))) for kind, count in counts.items()}
