"""All measures of a model on a split that the model and the data allow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ...modeling_speechclip_plus.embedding import embed_texts
from .alignments import AlignedWord, match_alignments, word_boundaries
from .bootstrap import RESAMPLES, mean_interval
from .chance import chance_keyword_hit_rate, chance_recall
from .evaluate import BRANCHES, keyword_shares, keyword_usage
from .keyword_metrics import boundary_agreement, even_boundaries, keyword_statistics
from .retrieval_statistics import RetrievalStatistics, retrieval_statistics
from .split_embeddings import SplitEmbeddings
from .zero_shot import speech_text_retrieval


@dataclass
class SplitEvaluation:
    """What was measured.

    Attributes:
        metrics: by name; docs/metrics.md tells what each is.
        intervals: 95 % bootstrap intervals (low, high) of those metrics that have one.
        chance: what guessing gives, by the names of the metrics without the branch.
        retrievals: statistics by branch and item: ("parallel", "image").
        notes: sentences about what could not be measured, and why.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    retrievals: dict[tuple[str, str], RetrievalStatistics] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def evaluate_split(
    model: Any,
    processor: Any,
    split: SplitEmbeddings,
    alignments: Mapping[str, list[AlignedWord]] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> SplitEvaluation:
    """Measure retrieval of images and texts by each branch, keywords, and where CIF fires.

    Args:
        model: the `SpeechClipPlusModel` that gave `split`; its text tower embeds the captions.
        processor: its processor.
        split: from `embed_split`.
        alignments: words of the utterances, from `read_alignments`.
        ks: cut-offs of the recalls.
        resamples: how many times queries are drawn for the intervals.
        seed: of all that is drawn.

    Raises:
        ValueError: if alignments are given, but match no utterance or the model has no CIF.
    """
    config = model.config
    if alignments is not None and split.boundaries is None:
        raise ValueError(f"Alignments are compared with where CIF fires, and a {config.variant} model has no CIF.")
    result = SplitEvaluation()
    speech_ids, image_ids = split.speech_image_ids, split.image_ids
    branches = [branch for branch in BRANCHES if f"{branch}_embeds" in split.outputs]
    captioned = [row for row, caption in enumerate(split.captions) if caption]
    texts = list(dict.fromkeys(split.captions[row] for row in captioned))
    text_embeds = embed_texts(model, processor, texts) if texts else None
    for branch in branches:
        embeds = split.outputs[f"{branch}_embeds"]
        found = {
            "image": retrieval_statistics(
                embeds, split.image_embeds, speech_ids, image_ids, ks, "image", resamples, seed
            )
        }
        if text_embeds is not None:
            found["text"] = speech_text_retrieval(
                embeds[captioned], [split.captions[row] for row in captioned], text_embeds, ks, resamples, seed
            )
        for item, statistics in found.items():
            result.retrievals[branch, item] = statistics
            for name, value in statistics.values.items():
                for shown in (
                    (f"{branch}_{name}", name) if _is_summary(name, branch, config) else (f"{branch}_{name}",)
                ):
                    result.metrics[shown] = value
                    result.intervals[shown] = statistics.intervals[name]
    result.chance = chance_recall(speech_ids.tolist(), image_ids.tolist(), ks)
    if texts:
        number = {text: place for place, text in enumerate(texts)}
        own = [number[split.captions[row]] for row in captioned]
        for name, value in chance_recall(own, range(len(texts)), ks).items():
            result.chance[f"mean_text_{name[5:]}" if name.startswith("mean") else name.replace("image", "text")] = (
                value
            )
    if not captioned:
        result.notes.append("The data have no captions: retrieval of texts and keywords in captions are left out.")
    elif len(captioned) < len(split.captions):
        result.notes.append(
            f"{len(split.captions) - len(captioned)} of {len(split.captions)} utterances have no caption and are left "
            "out of what compares with captions."
        )
    if "keyword_ids" in split.outputs:
        _keywords(model, processor, split, captioned, result, resamples, seed)
    if alignments is not None:
        _boundaries(split, alignments, result)
    result.metrics["utterances"], result.metrics["images"] = len(speech_ids), len(image_ids)
    return result


def _is_summary(name: str, branch: str, config: Any) -> bool:
    return name.startswith("mean_R@") and branch == config.retrieval_branch


def _keywords(
    model: Any,
    processor: Any,
    split: SplitEmbeddings,
    captioned: Sequence[int],
    result: SplitEvaluation,
    resamples: int,
    seed: int,
) -> None:
    table = model.get_input_embeddings().weight
    usable = model.vocabulary_ids[model.is_keyword].tolist()
    result.metrics |= keyword_usage(split.outputs)
    if captioned:
        subwords = processor.tokenizer(split.captions, add_special_tokens=False)["input_ids"]
        gold = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row, dtype=torch.long) for row in subwords], batch_first=True, padding_value=-1
        )
        result.chance |= chance_keyword_hit_rate([subwords[row] for row in captioned], usable)
        neighbours = tuple(k for k in (1, 5) if k <= len(usable))
        for name, shares in keyword_shares(split.outputs, gold, model.config, table, neighbours).items():
            result.metrics[name] = shares.mean().item()
            result.intervals[name] = mean_interval(shares, resamples, seed)
    statistics = keyword_statistics(
        split.outputs["keyword_ids"],
        split.outputs["keyword_lengths"],
        split.captions,
        processor.tokenizer,
        usable,
        table,
        resamples,
        seed,
    )
    result.metrics |= statistics.values
    result.intervals |= statistics.intervals


def _boundaries(split: SplitEmbeddings, alignments: Mapping[str, list[AlignedWord]], result: SplitEvaluation) -> None:
    assert split.boundaries is not None
    words = match_alignments(alignments, split.names, split.seconds)
    rows = [row for row, found in enumerate(words) if found]
    fired = [split.boundaries[row] for row in rows]
    reference = [word_boundaries(words[row] or ()) for row in rows]
    result.metrics |= boundary_agreement(fired, reference)
    result.metrics["aligned_utterances"] = len(rows)
    even = even_boundaries([len(times) for times in fired], [split.seconds[row] for row in rows])
    guess = boundary_agreement(even, reference)
    result.chance |= {name: value for name, value in guess.items() if "@" in name}
    if len(rows) < len(words):
        result.notes.append(f"{len(words) - len(rows)} of {len(words)} utterances have no alignment.")
