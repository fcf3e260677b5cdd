"""Report of an evaluation: its tables, figures and examples on one page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...hub_cards.charts import (
    bar_chart,
    keyword_cloud,
    line_chart,
    principal_components,
    rank_histogram,
    scatter_chart,
)
from ...hub_cards.report import (
    Figure,
    FoundImage,
    FoundSpeech,
    ImageQuery,
    Report,
    SpeechQuery,
    audio_data_uri,
    image_data_uri,
)
from ...hub_cards.results import ITEMS, Results, ScoreTable
from ...modeling_speechclip_plus.audio_utils import load_audio
from ...modeling_speechclip_plus.image_utils import load_image
from ..card_data import training_curves
from .evaluate import SplitOutputs, frame_seconds, spoken_keywords
from .keyword_metrics import cloud_counts
from .retrieval_metrics import CURVE_KS

NUM_EXAMPLES = 5
NUM_FOUND = 5
NUM_IMAGE_QUERIES = 3
CLOUD_WORDS = 60
PCA_POINTS = 400


def evaluation_report(
    model: Any,
    processor: Any,
    dataset: Any,
    split: SplitOutputs,
    evaluation: Results,
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
        image_queries=_image_queries(dataset, split, evaluation, model.config.retrieval_branch),
        **_training_curves(model.name_or_path),
        notes=[
            *evaluation.notes,
            "A right answer's rank counts every wrong one that scores as high. Intervals: bootstrap of the queries.",
        ],
    )


def _figures(model: Any, processor: Any, split: SplitOutputs, evaluation: Results) -> list[Figure]:
    figures = []
    for item, items in ITEMS.items():
        titles = {
            name: name.replace("_", ", ", 1).replace("_", " ") for name in evaluation.curves if item in name.split("_")
        }
        curves = {title: (CURVE_KS, evaluation.curves[name]) for name, title in titles.items()}
        ranks = {title: evaluation.ranks[name] for name, title in titles.items()}
        if curves:
            figures.append(Figure(f"Recall of {items} at k", line_chart(curves, unit="%", top=100.0, x_label="k")))
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


def _clouds(processor: Any, split: SplitOutputs) -> list[Figure]:
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


def _examples(model: Any, processor: Any, dataset: Any, split: SplitOutputs, evaluation: Results) -> list[SpeechQuery]:
    branch = model.config.retrieval_branch
    ranks = evaluation.ranks[f"{branch}_speech_to_image"]
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


def _image_queries(dataset: Any, split: SplitOutputs, evaluation: Results, branch: str) -> list[ImageQuery]:
    """The first images after those of the spoken examples, each with the utterances that are nearest to it."""
    ranks = evaluation.ranks[f"{branch}_image_to_speech"]
    count = len(split.image_ids)
    start = NUM_EXAMPLES if count >= NUM_EXAMPLES + NUM_IMAGE_QUERIES else 0
    queries = []
    for place in range(start, min(start + NUM_IMAGE_QUERIES, count)):
        similarities = split.outputs[f"{branch}_embeds"] @ split.image_embeds[place]  # (S,)
        best = similarities.topk(min(NUM_FOUND, len(similarities)))
        found = [
            _found_speech(dataset[row], split, row, similarity, split.image_ids[place].item())
            for similarity, row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        queries.append(ImageQuery(_picture(dataset, split, place), found, int(ranks[place]), len(similarities)))
    return queries


def _found_speech(record: Any, split: SplitOutputs, row: int, similarity: float, image_id: int) -> FoundSpeech:
    name = split.names[row][0]
    return FoundSpeech(
        audio_data_uri(load_audio(record["audio"], name=f"audio of {name}")),
        f"“{split.captions[row]}”" if split.captions[row] else name,
        similarity,
        split.speech_image_ids[row].item() == image_id,
        record.get("speaker") or "",
    )


def _training_curves(model: str) -> dict[str, Any]:
    """Losses and recalls of the training, from the history that lies beside a saved model, if it does."""
    file = Path(model) / "trainer_state.json"
    if not file.is_file():
        return {}
    history = json.loads(file.read_text(encoding="utf-8"))["log_history"]
    losses, recalls = training_curves(history).values()
    return {"losses": losses, "recalls": recalls}


def _picture(dataset: Any, split: SplitOutputs, place: int) -> str:
    return image_data_uri(load_image(dataset[split.image_rows[place]]["image"], name="picture"))
