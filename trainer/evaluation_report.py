"""From an evaluation to its tables and its page."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..modeling_speechclip_plus.audio_loading import load_audio
from ..modeling_speechclip_plus.image_loading import load_image
from .evaluation import BRANCHES
from .evaluation_charts import bar_chart, keyword_cloud, principal_components, rank_histogram, scatter_chart
from .keyword_metrics import cloud_counts
from .report import (
    Figure,
    FoundImage,
    Report,
    ScoreRow,
    ScoreTable,
    SpeechQuery,
    audio_data_uri,
    image_data_uri,
)
from .report_charts import line_chart
from .retrieval_statistics import CURVE_KS
from .split_embeddings import SplitEmbeddings
from .split_evaluation import SplitEvaluation
from .spoken_keywords import frame_seconds, spoken_keywords

ITEMS = {"image": "pictures", "text": "texts"}
NUM_EXAMPLES = 5
NUM_FOUND = 5
CLOUD_WORDS = 60
PCA_POINTS = 400
_TITLES = {
    "subword": "as subwords",
    "content_subword": "as subwords, without stop words",
    "word": "as words",
    "content_word": "as words, without stop words",
}


def result_tables(
    evaluation: SplitEvaluation, published: Mapping[str, Any] | None, retrieval_branch: str | None
) -> list[ScoreTable]:
    """Return the tables: retrieval of images and texts, keywords, boundaries.

    Args:
        evaluation: what was measured.
        published: figures of the same model on the same split, by the names of `configuration.presets`; None if there
            are none.
        retrieval_branch: the branch that published figures of retrieval are of.
    """
    tables = []
    for item, items in ITEMS.items():
        rows = []
        for branch in BRANCHES:
            if (branch, item) in evaluation.retrievals:
                rows += _retrieval_rows(evaluation, branch, item, published if branch == retrieval_branch else None)
        if rows:
            columns = ["R@1", "R@5", "R@10", "mAP", "median rank", "mean rank"]
            count = int(evaluation.metrics["utterances"])
            caption = f"Speech and {items} ({count} recordings; percent but for the ranks; 95 % intervals below)"
            tables.append(ScoreTable(caption, columns, rows))
    return tables + _keyword_tables(evaluation, published)


def _retrieval_rows(
    evaluation: SplitEvaluation, branch: str, item: str, published: Mapping[str, Any] | None
) -> list[ScoreRow]:
    metrics, rows = evaluation.metrics, []
    for direction, title in (
        (f"speech_to_{item}", f"speech to {ITEMS[item]}"),
        (f"{item}_to_speech", f"{ITEMS[item]} to speech"),
    ):
        names = [f"{direction}_{name}" for name in ("R@1", "R@5", "R@10", "mAP", "median_rank", "mean_rank")]
        rows.append(
            ScoreRow(
                f"{branch} branch, {title}",
                [_figure(f"{branch}_{name}", metrics) for name in names],
                [_interval(evaluation.intervals.get(f"{branch}_{name}")) for name in names],
            )
        )
        if f"{branch}_{direction}_mteb_R@1" in metrics:
            shares = [f"{branch}_{direction}_mteb_R@{k}" for k in (1, 5, 10)]
            rows.append(
                ScoreRow(
                    "the same, share of all right recordings (MTEB's recall)",
                    [*(_figure(name, metrics) for name in shares), "", "", ""],
                    [*(_interval(evaluation.intervals.get(name)) for name in shares), "", "", ""],
                )
            )
        for source, values in (("published", published or {}), ("guessing", evaluation.chance)):
            if any(name in values for name in names):
                rows.append(ScoreRow(source, [_figure(name, values) for name in names], is_baseline=True))
    return rows


def _keyword_tables(evaluation: SplitEvaluation, published: Mapping[str, Any] | None) -> list[ScoreTable]:
    metrics, intervals, tables = evaluation.metrics, evaluation.intervals, []
    rates = [name for name in metrics if name.startswith("keyword_hit_rate")]
    if rates:
        rows = []
        for name in rates:
            k = name.partition("@")[2]
            kind = "start, end and padding count, as in the original code" if "original" in name else "content only"
            values = [_figure(name, metrics), _figure(name, published or {}), _figure(name, evaluation.chance)]
            rows.append(ScoreRow(f"k = {k}, {kind}", values, [_interval(intervals.get(name)), "", ""]))
        common = evaluation.chance["keyword_hit_rate_most_common@1"]
        rows.append(ScoreRow("always the commonest subword", ["", "", f"{common:.1f}"], is_baseline=True))
        tables.append(ScoreTable("Keyword hit rate (percent)", ["measured", "published", "guessing"], rows))
    if "subword_f1" in metrics:
        rows = [
            ScoreRow(
                title,
                [_figure(f"{unit}_{name}", metrics) for name in ("precision", "recall", "f1")],
                [_interval(intervals.get(f"{unit}_{name}")) for name in ("precision", "recall", "f1")],
            )
            for unit, title in _TITLES.items()
            if f"{unit}_f1" in metrics
        ]
        tables.append(ScoreTable("Keywords against captions (percent)", ["precision", "recall", "F1"], rows))
    usage = {
        "keywords_per_utterance": "keywords per recording",
        "distinct_keywords": "different subwords in the split",
        "keyword_duplicates": "repeated keywords within a recording, %",
        "vocabulary_coverage": "usable subwords that ever occur, %",
        "caption_coverage": "subwords of the captions that ever occur, %",
        "semantic_similarity": "cosine with the nearest subword of the caption",
        "semantic_similarity_shuffled": "the same with other recordings' captions",
        "cif_length_error": "CIF's length against its target, keywords",
    }
    rows = [
        ScoreRow(title, [_figure(name, metrics, 3)], [_interval(intervals.get(name), 3)])
        for name, title in usage.items()
        if name in metrics
    ]
    if rows:
        tables.append(ScoreTable("Use of keywords", ["value"], rows))
    tolerances = [name.partition("@")[2] for name in metrics if name.startswith("boundary_f1@")]
    if tolerances:
        rows = []
        for tolerance in tolerances:
            names = [f"boundary_{name}@{tolerance}" for name in ("precision", "recall", "f1", "r_value")]
            chance = [_figure(name, evaluation.chance) for name in names]
            rows.append(
                ScoreRow(f"within {tolerance.removesuffix('ms')} ms", [_figure(name, metrics) for name in names])
            )
            rows.append(ScoreRow("as many boundaries, evenly spaced", chance, is_baseline=True))
        caption = f"Where CIF fires against word boundaries ({int(metrics['aligned_utterances'])} recordings; percent)"
        tables.append(ScoreTable(caption, ["precision", "recall", "F1", "R-value"], rows))
    return tables


def _figure(name: str, values: Mapping[str, Any], digits: int = 1) -> str:
    value = values.get(name)
    if value is None:
        return ""
    return f"{value:g}" if name.endswith("median_rank") or isinstance(value, int) else f"{value:.{digits}f}"


def _interval(ends: tuple[float, float] | None, digits: int = 1) -> str:
    return "" if ends is None else f"{ends[0]:.{digits}f} to {ends[1]:.{digits}f}"


def evaluation_report(
    model: Any,
    processor: Any,
    dataset: Any,
    split: SplitEmbeddings,
    evaluation: SplitEvaluation,
    tables: Sequence[ScoreTable],
    facts: Sequence[tuple[str, str]],
) -> Report:
    """Put the page together.

    Args:
        model: the model that was evaluated.
        processor: its processor.
        dataset: the rows, for the examples.
        split: what the model gave for them.
        evaluation: what was measured.
        tables: from `result_tables`.
        facts: (name, value) pairs: model, data, versions.
    """
    return Report(
        title=f"Evaluation of {dict(facts).get('model', 'a model')}",
        summary=[
            f"A {model.config.variant} model on {len(split.captions)} recordings of {len(split.image_ids)} pictures. "
            "The examples at the end are the first of the split, not chosen."
        ],
        tables=tables,
        tables_heading="Results",
        facts=facts,
        facts_heading="What was evaluated",
        figures=_figures(model, processor, split, evaluation),
        speech_queries=_examples(model, processor, dataset, split, evaluation),
        notes=[
            *evaluation.notes,
            "A right answer's rank counts every wrong one that scores as high. Intervals: bootstrap of the queries.",
        ],
    )


def _figures(model: Any, processor: Any, split: SplitEmbeddings, evaluation: SplitEvaluation) -> list[Figure]:
    figures = []
    for item, items in ITEMS.items():
        curves, ranks = {}, {}
        for (branch, what), statistics in evaluation.retrievals.items():
            if what == item:
                for direction, values in statistics.curves.items():
                    name = f"{branch}, {direction.replace('_', ' ')}"
                    curves[name] = (CURVE_KS, values)
                    to_item = direction.startswith("speech")
                    ranks[name] = statistics.speech_ranks if to_item else statistics.item_ranks
        if curves:
            figures.append(Figure(f"Recall of {items} at k", line_chart(curves, unit="%", top=100.0)))
            figures.append(
                Figure(f"Rank of the right answer, {items}", rank_histogram(ranks), "share of queries by rank")
            )
    weights = torch.softmax(model.layer_sum.weight.detach().float().cpu(), dim=0).flatten().tolist()
    layers = [str(layer) for layer in range(len(weights))]
    note = "share of each hidden state of the speech encoder; 0 is what enters its first layer"
    figures.append(Figure("Weights of the layers", bar_chart(layers, {"weight": weights}), note))
    branch = model.config.retrieval_branch
    embeds = {
        "speech": split.outputs[f"{branch}_embeds"][:PCA_POINTS],
        "pictures": split.image_embeds[:PCA_POINTS],
    }
    points, shares = principal_components(embeds)
    figures.append(
        Figure(
            "Embedding space",
            scatter_chart(points, (f"first component ({shares[0]:.0f} %)", f"second ({shares[1]:.0f} %)")),
            f"principal components of {len(embeds['speech'])} recordings ({branch} branch) and "
            f"{len(embeds['pictures'])} pictures together",
        )
    )
    if "keyword_ids" in split.outputs:
        figures += _clouds(processor, split)
    return figures


def _clouds(processor: Any, split: SplitEmbeddings) -> list[Figure]:
    keywords = [
        row[:length]
        for row, length in zip(
            split.outputs["keyword_ids"].tolist(), split.outputs["keyword_lengths"].tolist(), strict=True
        )
    ]
    gold = processor.tokenizer(split.captions, add_special_tokens=False)["input_ids"]
    captions = [ids if caption else None for ids, caption in zip(gold, split.captions, strict=True)]
    titles = {
        "hit": "Keywords that were said",
        "miss": "Keywords that were not said",
        "unknown": "Keywords of recordings without caption",
    }
    figures = []
    for kind, counts in cloud_counts(keywords, captions).items():
        if counts:
            texts: dict[str, int] = {}
            for subword, count in list(counts.items())[:CLOUD_WORDS]:
                text = processor.tokenizer.decode([subword]).strip() or str(subword)
                texts[text] = texts.get(text, 0) + count
            cloud = keyword_cloud(texts, "plain" if kind == "unknown" else kind)
            note = f"{sum(counts.values())} keywords, {len(counts)} different"
            if len(counts) > CLOUD_WORDS:
                note += f"; the commonest {CLOUD_WORDS} are shown"
            figures.append(Figure(titles[kind], cloud, note, is_wide=True))
    return figures


def _examples(
    model: Any, processor: Any, dataset: Any, split: SplitEmbeddings, evaluation: SplitEvaluation
) -> list[SpeechQuery]:
    branch = model.config.retrieval_branch
    ranks = evaluation.retrievals[branch, "image"].speech_ranks
    queries = []
    for row in range(min(NUM_EXAMPLES, len(split.captions))):
        record, caption = dataset[row], split.captions[row]
        waveform = load_audio(record["audio"], name=f"audio of {split.names[row][0]}")
        best = (split.image_embeds @ split.outputs[f"{branch}_embeds"][row]).topk(min(NUM_FOUND, len(split.image_ids)))
        own = split.speech_image_ids[row].item()
        found = [
            FoundImage(_picture(dataset, split, place), similarity, split.image_ids[place].item() == own)
            for similarity, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        keywords, weights = spoken_keywords(model, processor, waveform, caption or None)
        missed = not any(image.right for image in found)
        queries.append(
            SpeechQuery(
                title=f"“{caption}”" if caption else split.names[row][0],
                audio=audio_data_uri(waveform),
                waveform=waveform,
                images=found,
                keywords=keywords,
                weights=weights,
                frame_seconds=frame_seconds(model),
                speaker=record.get("speaker") or "",
                rank=int(ranks[row]),
                right_image=_picture(dataset, split, split.image_ids.tolist().index(own)) if missed else None,
                searched=len(split.image_ids),
            )
        )
    return queries


def _picture(dataset: Any, split: SplitEmbeddings, place: int) -> str:
    return image_data_uri(load_image(dataset[split.image_rows[place]]["image"], name="picture"))
