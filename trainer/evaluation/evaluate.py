"""Evaluation of a split: what a model gives for it, collected once, and every metric that this allows.

The Trainer, `speechclip-plus evaluate` and the quickstart all measure by `evaluate`.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...hub_cards.results import BRANCHES, Results
from ...modeling_speechclip_plus.audio_utils import SAMPLING_RATE
from ...modeling_speechclip_plus.embedding import audio_batches, embed_images, embed_texts
from ..collator import GOLD_SUBWORDS
from .alignments import AlignedWord, boundary_agreement, even_spans, match_alignments, word_boundaries
from .keyword_metrics import chance_keyword_hit_rate, hit_rate_shares, keyword_localization, keyword_statistics
from .retrieval_metrics import (
    CONFIDENCE,
    RESAMPLES,
    Statistics,
    chance_recall,
    mean_statistics,
    recall_curve,
    retrieval_statistics,
)

# What evaluation keeps of the model's output.
KEPT_OUTPUTS = (
    *("parallel_embeds", "cascaded_embeds", "image_embeds"),
    *("keyword_ids", "keyword_lengths", "alpha_sums", "target_lengths"),
)
_AT_THE_END = 0.02  # seconds: a boundary that near to the end, by a frame of rounding, is the end


@dataclass
class SplitOutputs:
    """What a model gave for a split of S utterances and I images, on the CPU."""

    outputs: dict[str, Tensor]  # `(S, ...)` each, under the names of `KEPT_OUTPUTS` without `image_embeds`; padded
    image_embeds: Tensor  # `(I, P)`; an image may be there several times, with equal rows
    image_ids: Tensor  # `(I,)` int64
    speech_image_ids: Tensor  # `(S,)` int64, the image of each utterance
    gold_subwords: Sequence[list[int] | None]  # Subword ids of each utterance's caption, `None` where it has none
    captions: list[str] = field(default_factory=list)  # S texts, "" where there is none; empty if nothing is known
    # `(T, P)`, of the different captions in the order in which they first occur; `None` without any
    text_embeds: Tensor | None = None
    image_rows: list[int] = field(default_factory=list)  # The first row of the data set with each image
    # What each utterance's alignment may be called: its caption id, the name of its file
    names: list[list[str]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # Length of each utterance
    # The words of each utterance with their times, `None` where they are not known
    words: list[list[AlignedWord] | None] = field(default_factory=list)
    # Start and end in seconds of each utterance's keywords; `None` without CIF
    keyword_spans: list[list[tuple[float, float]]] | None = None

    @classmethod
    def from_predictions(cls, predictions: Any, label_ids: Any) -> "SplitOutputs":
        """Join what the Trainer's evaluation loop collected: batches of `kept_outputs` and of its labels."""
        outputs, labels = _joined(predictions), _joined(label_ids)
        gold = labels[GOLD_SUBWORDS].tolist() if GOLD_SUBWORDS in labels else [[]] * len(labels["image_ids"])
        return cls(
            image_embeds=outputs.pop("image_embeds"),
            outputs=outputs,
            image_ids=labels["image_ids"],
            speech_image_ids=labels["image_ids"],
            gold_subwords=[[i for i in row if i >= 0] or None for row in gold],
        )


def kept_outputs(outputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Select from a batch's output what `evaluate` needs, in a type that any device can gather."""
    kept = {name: outputs[name].detach() for name in KEPT_OUTPUTS if outputs.get(name) is not None}
    return {name: value.float() if value.is_floating_point() else value for name, value in kept.items()}


def _joined(batches: Any) -> dict[str, Tensor]:
    """Join batches, or a single one, name by name; rows of different lengths are ids, padded with -1."""
    batches = batches if isinstance(batches, list) else [batches]
    joined = {}
    for name in batches[0]:
        rows = [row for batch in batches for row in torch.as_tensor(batch[name])]
        is_ids = rows[0].dim() == 1 and not rows[0].is_floating_point()
        joined[name] = pad_sequence(rows, batch_first=True, padding_value=-1) if is_ids else torch.stack(rows)
    return joined


@torch.no_grad()
def embed_split(
    model: Any,
    processor: Any,
    dataset: Any,
    batch_size: int = 16,
    progress: Callable[[int], object] = lambda done: None,
) -> SplitOutputs:
    """Run a model in evaluation mode over a split: every utterance, image and caption once; no waveform is kept.

    `progress` is called with the number of images, and after every batch of utterances with their number. An
    utterance or image that cannot be read is a ValueError that names it.
    """
    if len(dataset) == 0:
        raise ValueError("The data set has no rows.")
    columns, count = set(dataset.column_names), len(dataset)
    captions = [text or "" for text in dataset["text"]] if "text" in columns else [""] * count
    texts = list(dict.fromkeys(filter(None, captions)))
    names = list(dataset["caption_id"]) if "caption_id" in columns else [f"row {row}" for row in range(count)]
    ids = list(dataset["image_id"])
    rows = sorted({image_id: row for row, image_id in reversed(list(enumerate(ids)))}.values())
    images = dataset.select(rows)["image"]
    spoken = dataset["words"] if "words" in columns else [None] * count
    gold = processor.tokenizer(captions, add_special_tokens=False)["input_ids"]
    split = SplitOutputs(
        outputs={},
        image_embeds=embed_images(model, processor, images, batch_size, lambda row: f"image of {names[rows[row]]}"),
        image_ids=torch.tensor(ids)[rows],
        speech_image_ids=torch.tensor(ids),
        gold_subwords=[row or None for row in gold],
        captions=captions,
        text_embeds=embed_texts(model, processor, texts) if texts else None,
        image_rows=rows,
        names=[[str(name)] for name in names],
        seconds=[0.0] * count,
        words=[[AlignedWord(**word) for word in row or ()] or None for row in spoken],
        keyword_spans=[[] for _ in range(count)] if model.config.has_cif else None,
    )
    progress(len(rows))
    _collect_speech(model, processor, dataset, split, batch_size, progress)
    return split


def _collect_speech(
    model: Any, processor: Any, dataset: Any, split: SplitOutputs, batch_size: int, progress: Callable[[int], object]
) -> None:
    def recordings() -> Iterator[Any]:
        for row, item in enumerate(dataset.select_columns(["audio"])):
            audio = item["audio"]
            if isinstance(audio, dict) and audio.get("path"):
                split.names[row].append(Path(audio["path"]).stem)
            yield audio

    def name(row: int) -> str:
        return f"audio of {split.names[row][0]}"

    order: list[int] = []
    kept = []
    for batch in audio_batches(model, processor, recordings(), batch_size, name=name):
        outputs = model(**batch.inputs)
        kept.append({name: value.cpu() for name, value in kept_outputs(outputs).items()})
        for row, samples in zip(batch.rows, batch.lengths, strict=True):
            split.seconds[row] = samples / SAMPLING_RATE
        if split.keyword_spans is not None:
            lengths = outputs.keyword_lengths.tolist()
            seconds = (outputs.keyword_spans.double() * model.speech_adapter.seconds_per_frame).tolist()  # (B, N, 2)
            for row, spans, length in zip(batch.rows, seconds, lengths, strict=True):
                split.keyword_spans[row] = [(start, end) for start, end in spans[:length]]
        order += batch.rows
        progress(len(batch.rows))
    places = torch.tensor(order).argsort()
    split.outputs = {name: values[places] for name, values in _joined(kept).items()}


def evaluate(
    split: SplitOutputs,
    model: Any,
    tokenizer: Any = None,
    alignments: Mapping[str, list[AlignedWord]] | None = None,
    hit_rate_neighbours: Sequence[int] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Results:
    """Measure retrieval of images and texts by each branch, keywords, and where CIF fires.

    Args:
        split: from `embed_split`, or joined from the Trainer's predictions.
        model: the `SpeechClipPlusModel` that gave it, for its configuration and its token embeddings.
        tokenizer: CLIP's. Without it keywords are not compared with captions beyond the hit rates.
        alignments: words of the utterances, from `read_alignments`, in place of those that the data have.
        hit_rate_neighbours: cut-offs of the hit rates; 1 and 5, if the vocabulary has so many, by default.
        resamples: of the queries, for the confidence intervals; 0 for none.
        seed: of all that is drawn.

    Returns:
        The metrics (docs/metrics.md has their names), intervals, chance, recall curves, ranks and notes.
    """
    if alignments is not None and split.keyword_spans is None:
        raise ValueError(
            f"Alignments are compared with where CIF fires, and a {model.config.model_variant} model has no CIF."
        )
    results = Results(
        variant=model.config.model_variant,
        retrieval_branch=model.config.retrieval_branch,
        bootstrap={"resamples": resamples, "confidence": CONFIDENCE, "seed": seed},
    )
    gold = split.gold_subwords
    if all(row is None for row in gold):
        results.notes.append("The data have no captions: retrieval of texts and keywords in captions are left out.")
    elif missing := gold.count(None):
        results.notes.append(
            f"{missing} of {len(gold)} utterances have no caption and are left out of what compares with captions."
        )
    _add_retrieval(results, split, resamples, seed)
    if "keyword_ids" in split.outputs:
        _add_keywords(results, split, model, tokenizer, hit_rate_neighbours, resamples, seed)
    words = split.words if alignments is None else match_alignments(alignments, split.names, split.seconds)
    if split.keyword_spans is not None and any(words):
        _add_times(results, split, split.keyword_spans, words, tokenizer, seed)
    results.metrics["utterances"] = len(split.speech_image_ids)
    results.metrics["images"] = len(torch.unique(split.image_ids))
    return results


def _add_retrieval(results: Results, split: SplitOutputs, resamples: int, seed: int) -> None:
    rows = list(range(len(split.speech_image_ids)))
    searched = {"image": (rows, split.image_embeds, split.speech_image_ids, split.image_ids)}
    if split.text_embeds is not None:
        captioned = [row for row in rows if split.captions[row]]
        numbers = {text: number for number, text in enumerate(dict.fromkeys(split.captions[row] for row in captioned))}
        own_text = torch.tensor([numbers[split.captions[row]] for row in captioned])
        searched["text"] = (captioned, split.text_embeds, own_text, torch.arange(len(numbers)))
    for branch in (branch for branch in BRANCHES if f"{branch}_embeds" in split.outputs):
        for item, (queries, embeds, own_ids, ids) in searched.items():
            speech = split.outputs[f"{branch}_embeds"][queries]
            statistics = retrieval_statistics(speech, embeds, own_ids, ids, item=item, resamples=resamples, seed=seed)
            _add(results, statistics, f"{branch}_")
            for direction, ranks in statistics.ranks.items():
                results.ranks[f"{branch}_{direction}"] = ranks
                results.curves[f"{branch}_{direction}"] = [round(recall, 4) for recall in recall_curve(ranks)]
    for item, (_, _, own_ids, ids) in searched.items():
        results.chance |= chance_recall(own_ids.tolist(), ids.tolist(), item=item)
    prefix = f"{results.retrieval_branch}_"
    stored: tuple[dict[str, Any], ...] = (results.metrics, results.intervals)
    for figures in stored:
        for name in [name for name in figures if name.startswith(f"{prefix}mean_R@")]:
            figures[name.removeprefix(prefix)] = figures[name]


def _add_keywords(
    results: Results,
    split: SplitOutputs,
    model: Any,
    tokenizer: Any,
    neighbours: Sequence[int] | None,
    resamples: int,
    seed: int,
) -> None:
    outputs = split.outputs
    ids, lengths = outputs["keyword_ids"], outputs["keyword_lengths"]
    table = model.get_input_embeddings().weight
    usable = model.vocabulary_ids[model.is_keyword].tolist()
    gold = split.gold_subwords
    captioned = [row for row in gold if row is not None]
    results.metrics["keywords_per_utterance"] = lengths.double().mean().item()
    results.metrics["distinct_keywords"] = len(torch.unique(ids[ids >= 0]))
    if "alpha_sums" in outputs and "target_lengths" in outputs:
        error = (outputs["alpha_sums"].double() - outputs["target_lengths"].double()).abs()
        results.metrics["cif_length_error"] = error.mean().item()
    if captioned:
        results.chance |= chance_keyword_hit_rate(captioned, usable)
        ks = [k for k in (1, 5) if k <= len(usable)] if neighbours is None else neighbours
        _add(results, mean_statistics(hit_rate_shares(ids, lengths, gold, model.config, table, ks), resamples, seed))
    if tokenizer is not None:
        _add(results, keyword_statistics(ids, lengths, gold, tokenizer, usable, table, resamples, seed))


def _add_times(
    results: Results,
    split: SplitOutputs,
    spans: Sequence[Sequence[tuple[float, float]]],
    words: Sequence[list[AlignedWord] | None],
    tokenizer: Any,
    seed: int,
) -> None:
    """Compare where CIF fires with word boundaries, and where keywords are with the words that they name."""
    rows = [row for row, aligned in enumerate(words) if aligned]
    known, found = [words[row] or [] for row in rows], [spans[row] for row in rows]
    seconds = [split.seconds[row] for row in rows]
    fired = [[end for _, end in own if end < length - _AT_THE_END] for own, length in zip(found, seconds, strict=True)]
    reference = [word_boundaries(row) for row in known]
    results.metrics |= boundary_agreement(fired, reference)
    results.metrics["aligned_utterances"] = len(rows)
    even = [even_spans(len(times) + 1, length) for times, length in zip(fired, seconds, strict=True)]
    chance = boundary_agreement([[end for _, end in own[:-1]] for own in even], reference)
    results.chance |= {name: value for name, value in chance.items() if "@" in name}
    if tokenizer is not None:
        ids = [split.outputs["keyword_ids"][row].tolist() for row in rows]
        token_words = [
            [
                (set(tokenizer(word.word.lower(), add_special_tokens=False)["input_ids"]), word.start, word.end)
                for word in row
            ]
            for row in known
        ]
        results.metrics |= keyword_localization(ids, found, token_words)
        generator = random.Random(seed)
        for name, spans in (
            ("", [even_spans(len(own), length) for own, length in zip(found, seconds, strict=True)]),
            ("_shuffled", [generator.sample(list(own), len(own)) for own in found]),
        ):
            score = keyword_localization(ids, spans, token_words)["keyword_localization"]
            results.chance[f"keyword_localization{name}"] = score
    if len(rows) < len(words):
        results.notes.append(f"{len(words) - len(rows)} of {len(words)} utterances have no alignment.")


def _add(results: Results, statistics: Statistics, prefix: str = "") -> None:
    results.metrics |= {f"{prefix}{name}": value for name, value in statistics.values.items()}
    results.intervals |= {f"{prefix}{name}": ends for name, ends in statistics.intervals.items()}
