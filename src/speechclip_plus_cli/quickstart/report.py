"""From the quickstart's results to its report."""

from collections.abc import Mapping, Sequence
from typing import Any

from speechclip_plus.hub_cards.report import ImageQuery, Report, SpeechQuery
from speechclip_plus.hub_cards.results import ScoreRow, ScoreTable

from ..console import clock_time, number

DIRECTIONS = {"speech_to_image": "speech to pictures", "image_to_speech": "pictures to speech"}
RETRIEVAL_COLUMNS = ("R@1", "R@5", "R@10", "median_rank")


def quickstart_report(
    config: Any,
    results: Mapping[str, Any] | None,
    speech_queries: Sequence[SpeechQuery],
    image_queries: Sequence[ImageQuery],
    checked: str,
) -> Report:
    """Put the report together.

    Args:
        config: the model's configuration.
        results: the content of `results.json`; None for a model that was not trained here.
        speech_queries: answered spoken queries.
        image_queries: answered pictures.
        checked: a sentence about the check of the loaded model, or "".
    """
    report = Report(
        title="Pictures found by voice",
        speech_queries=speech_queries,
        image_queries=image_queries,
        notes=[checked] if checked else [],
    )
    report.summary = [
        f"A {config.variant} model heard spoken descriptions and found the pictures they describe, without any text."
    ]
    if results is None:
        return report
    counts, training, test = results["data"], results["training"], results["test"]
    report.summary.append(
        f"Its small trained part learned in {training['seconds'] / 60:.1f} minutes from "
        f"{counts['train_utterances']:,} spoken descriptions of {counts['train_images']:,} drawn scenes, on top of a "
        "frozen speech encoder and a frozen CLIP. All figures and examples below are of scenes and voices that it "
        "never met in training; the examples are the first of the test split, not chosen."
    )
    report.tables = score_tables(test, results["chance"])
    report.facts = _facts(results)
    history = results["history"]
    report.losses = {
        title: (history["train"]["step"], history["train"][name])
        for name, title in (
            ("loss", "total"),
            ("parallel_loss", "parallel"),
            ("cascaded_loss", "cascaded"),
            ("quantity_loss", "quantity"),
        )
        if name in history["train"]
    }
    report.recalls = {
        title: (history["validation"]["step"], history["validation"][name])
        for name, title in (
            ("parallel_mean_R@10", "parallel, R@10"),
            ("cascaded_mean_R@10", "cascaded, R@10"),
            ("keyword_hit_rate@1", "keyword hit rate"),
        )
        if name in history["validation"]
    }
    report.notes = [
        *report.notes,
        "Recall at k is the share of queries whose right answer is among the first k, with ties counted against the "
        "model; the validation curves show the mean of both directions.",
        "The scenes are drawn by code and the voices are espeak-ng's: the model knows this little world and no other.",
        ", ".join(f"{name} {version}" for name, version in results["versions"].items()) + ".",
    ]
    return report


def score_tables(metrics: Mapping[str, float], chance: Mapping[str, float]) -> list[ScoreTable]:
    """Return the tables of retrieval and of keywords, each figure beside what guessing gives."""
    rows = []
    for branch in ("parallel", "cascaded"):
        for direction, text in DIRECTIONS.items():
            if f"{branch}_{direction}_R@1" in metrics:
                cells = [_cell(name, metrics[f"{branch}_{direction}_{name}"]) for name in RETRIEVAL_COLUMNS]
                guess = [_cell(name, chance[f"{direction}_{name}"]) for name in RETRIEVAL_COLUMNS]
                rows.append(ScoreRow(f"{branch} branch, {text}", cells, guess))
    tables = [
        ScoreTable(
            f"Retrieval among {int(metrics['images'])} pictures and {int(metrics['utterances'])} recordings "
            "(percent, but for the rank; guessing below)",
            ["R@1", "R@5", "R@10", "median rank"],
            rows,
        )
    ]
    if "keyword_hit_rate@1" in metrics:
        hit_rates = [
            ("start, end and padding never count", metrics["keyword_hit_rate@1"], False),
            ("they count, as in the original code", metrics["keyword_hit_rate_original@1"], False),
            ("guessing: subwords drawn at random", chance["keyword_hit_rate@1"], True),
            ("guessing: always the commonest subword", chance["keyword_hit_rate_most_common@1"], True),
        ]
        tables.append(
            ScoreTable(
                "Keywords that are in the caption: hit rate (percent, k = 1)",
                ["hit rate"],
                [ScoreRow(name, [number(value)], is_baseline=baseline) for name, value, baseline in hit_rates],
            )
        )
    return tables


def _cell(name: str, value: float) -> str:
    return f"{value:g}" if name == "median_rank" else number(value)


def _facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    training, counts, test = results["training"], results["data"], results["test"]
    facts = [
        ("model", f"{results['variant']}, {training['trained_parameters']:,} trained parameters"),
        ("frozen", f"{training['frozen_parameters']:,} parameters of a tiny HuBERT and a tiny CLIP"),
        (
            "training data",
            f"{counts['train_utterances']:,} recordings in {counts['train_voices']} voices, "
            f"{counts['train_images']:,} pictures",
        ),
        ("test data", f"{int(test['utterances'])} recordings in {counts['test_voices']} other voices, as many scenes"),
        ("training", f"{training['steps']:,} steps of {training['batch_size']} pairs"),
        ("learning rate", f"{training['learning_rate']:g}, warm-up {training['warmup_steps']} steps, linear decay"),
        ("seed", str(results["seed"])),
        ("time", f"{clock_time(results['seconds']['total']).strip()} minutes in all"),
    ]
    if "keywords_per_utterance" in test:
        facts.append(
            (
                "keywords",
                f"{test['keywords_per_utterance']:.1f} per recording, {int(test['distinct_keywords'])} different "
                "subwords in the test split",
            )
        )
    return facts
