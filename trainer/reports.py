"""Reports: the page of an evaluation, with the first queries of the split, and that of a search in an index."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..hub_cards.report import (
    Answer,
    Figure,
    FoundItem,
    Report,
    bar_chart,
    keyword_cloud,
    line_chart,
)
from ..hub_cards.results import ITEMS, Results, ScoreTable
from ..hub_cards.space.waveform import audio_data_uri, image_data_uri
from ..modeling_speechclip_plus.audio_utils import SAMPLING_RATE, load_audio
from ..modeling_speechclip_plus.embedding import embed_audio, embed_images, embed_texts
from ..modeling_speechclip_plus.embedding_index import EmbeddingIndex
from ..modeling_speechclip_plus.image_utils import load_image
from ..modeling_speechclip_plus.keywords import token_text
from .card_data import training_curves
from .evaluation.evaluate import SplitOutputs
from .evaluation.keyword_metrics import cloud_counts, spoken_keywords
from .evaluation.retrieval_metrics import CURVE_KS

NUM_EXAMPLES = 5
NUM_FOUND = 5
NUM_IMAGE_QUERIES = 3
CLOUD_WORDS = 60
_QUERY_SIDE = 384  # pixels of an image that is a query


def evaluation_report(
    model: Any,
    processor: Any,
    dataset: Any,
    split: SplitOutputs,
    evaluation: Results,
    tables: Sequence[ScoreTable],
    facts: Sequence[tuple[str, str]],
) -> Report:
    """Put the page together: `split` is what the model gave for the rows of `dataset`."""
    branch = model.config.retrieval_branch
    count = len(split.image_ids)
    rows = range(min(NUM_EXAMPLES, len(split.captions)))
    # Images after those of the spoken examples.
    start = NUM_EXAMPLES if count >= NUM_EXAMPLES + NUM_IMAGE_QUERIES else 0
    places = range(start, min(start + NUM_IMAGE_QUERIES, count))
    spoken = ("From speech to images", f"Each utterance searched {count} images by its sound alone; no text was used.")
    seen = (
        "From images to speech",
        f"Each image searched {len(split.captions)} utterances. The captions are there for the reader only.",
    )
    return Report(
        title=f"Evaluation of {dict(facts).get('model', 'a model')}",
        summary=[
            f"A {model.config.model_variant} model on {len(split.captions)} utterances of {count} images. "
            "The examples at the end are the first of the split, not chosen; the best are shown first."
        ],
        tables=tables,
        figures=_figures(model, processor, split, evaluation) + _training_figures(model.name_or_path),
        answers=[
            (spoken, [_speech_answer(model, processor, dataset, split, evaluation, row) for row in rows]),
            (seen, [_image_answer(dataset, split, evaluation, branch, place) for place in places]),
        ],
        facts=facts,
        notes=[
            *evaluation.notes,
            "A right answer's rank counts every wrong one that scores as high. Intervals: bootstrap of the queries.",
        ],
    )


def _figures(model: Any, processor: Any, split: SplitOutputs, evaluation: Results) -> list[Figure]:
    figures = []
    for item, items in ITEMS.items():
        curves = {
            name.replace("_", ", ", 1).replace("_", " "): (CURVE_KS, curve)
            for name, curve in evaluation.curves.items()
            if item in name.split("_")
        }
        if curves:
            figures.append(Figure(f"Recall at k, {items}", line_chart(curves, "recall at k, %", "k")))
    weights = torch.softmax(model.layer_sum.weight.detach().float().cpu(), dim=0).flatten().tolist()
    layers = {str(layer): weight for layer, weight in enumerate(weights)}
    chart = bar_chart(layers, "weight", "hidden state of the speech encoder")
    figures.append(Figure("Weights of the layers", chart, "0 is what enters the first layer; all add up to 1"))
    if "keyword_ids" in split.outputs:
        figures += _clouds(processor, split)
    return figures


def _clouds(processor: Any, split: SplitOutputs) -> list[Figure]:
    ids, lengths, gold = split.outputs["keyword_ids"], split.outputs["keyword_lengths"], split.gold_subwords
    titles = {
        "hit": "Keywords that were said",
        "miss": "Keywords that were not said",
        "unknown": "Keywords of utterances without a caption",
    }
    figures = []
    for kind, counts in cloud_counts(spoken_keywords(ids, lengths, gold), gold).items():
        if counts:
            texts: Counter[str] = Counter()
            for token, count in counts.most_common(CLOUD_WORDS):
                texts[token_text(processor.tokenizer, token)] += count
            note = f"{counts.total()} keywords, {len(counts)} different"
            if len(counts) > CLOUD_WORDS:
                note += f"; the commonest {CLOUD_WORDS} are shown"
            cloud = keyword_cloud(texts, "plain" if kind == "unknown" else kind)
            figures.append(Figure(titles[kind], cloud, note, is_wide=True))
    return figures


@torch.no_grad()
def spoken_query(model: Any, processor: Any, waveform: np.ndarray, caption: str = "") -> dict[str, Any]:
    """What an `Answer` shows of an utterance that asked: its waveform (S,) at 16 kHz and the keywords in it."""
    shown: dict[str, Any] = {"waveform": waveform, "frame_seconds": model.speech_adapter.seconds_per_frame}
    if model.config.has_cascaded:
        inputs = processor(audio=waveform, sampling_rate=SAMPLING_RATE, return_tensors="pt").to(model.device)
        top_k = min(4, int(model.is_keyword.sum()))
        shown["keywords"] = model.extract_keywords(**inputs, tokenizer=processor, top_k=top_k)[0]
        shown["said"] = set(processor.tokenizer(caption, add_special_tokens=False)["input_ids"]) if caption else None
        alphas = model(**inputs).alphas
        shown["weights"] = None if alphas is None else alphas[0].cpu().numpy()
    return shown


def _speech_answer(
    model: Any, processor: Any, dataset: Any, split: SplitOutputs, evaluation: Results, row: int
) -> Answer:
    branch, caption, name = model.config.retrieval_branch, split.captions[row], split.names[row][0]
    record = dataset[row]
    waveform = load_audio(record["audio"], name=f"audio of {name}")
    best = (split.image_embeds @ split.outputs[f"{branch}_embeds"][row]).topk(min(NUM_FOUND, len(split.image_ids)))
    own = split.speech_image_ids[row].item()
    found = [
        FoundItem(_image(dataset, split, place), similarity, right=split.image_ids[place].item() == own)
        for similarity, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
    is_missed = not any(item.right for item in found)
    return Answer(
        f"“{caption}”" if caption else name,
        "images",
        found,
        ", ".join(filter(None, [f"{len(waveform) / SAMPLING_RATE:.1f} seconds", record.get("speaker")])),
        rank=int(evaluation.ranks[f"{branch}_speech_to_image"][row]),
        searched=len(split.image_ids),
        right_image=_image(dataset, split, split.image_ids.tolist().index(own)) if is_missed else None,
        words=(split.words[row] if split.words else None) or (),
        **spoken_query(model, processor, waveform, caption),
    )


def _image_answer(dataset: Any, split: SplitOutputs, evaluation: Results, branch: str, place: int) -> Answer:
    similarities = split.outputs[f"{branch}_embeds"] @ split.image_embeds[place]  # (S,)
    best = similarities.topk(min(NUM_FOUND, len(similarities)))
    own = split.image_ids[place].item()
    found = []
    for similarity, row in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        record, caption, name = dataset[row], split.captions[row], split.names[row][0]
        audio = audio_data_uri(load_audio(record["audio"], name=f"audio of {name}"))
        label, is_right = f"“{caption}”" if caption else name, split.speech_image_ids[row].item() == own
        found.append(FoundItem(audio, similarity, label, record.get("speaker") or "", is_right))
    rank = int(evaluation.ranks[f"{branch}_image_to_speech"][place])
    image = _image(dataset, split, place)
    return Answer("", "utterances", found, image=image, rank=rank, searched=len(similarities))


def _training_figures(model: str) -> list[Figure]:
    """Curves of the training, from the history that lies beside a saved model, if it does."""
    file = Path(model) / "trainer_state.json"
    if not file.is_file():
        return []
    panels = training_curves(json.loads(file.read_text(encoding="utf-8"))["log_history"])
    charts = {title: line_chart(curves, title) for title, curves in panels.items()}
    return [
        Figure(f"{title.removesuffix(', %')} over training steps", chart) for title, chart in charts.items() if chart
    ]


def _image(dataset: Any, split: SplitOutputs, place: int) -> str:
    row = split.image_rows[place]
    return image_data_uri(load_image(dataset[row]["image"], name=f"image of {split.names[row][0]}"))


@dataclass(frozen=True)
class Query:
    """What is searched for in an index."""

    kind: str  # "speech", "text" or "image"
    value: str  # the text, or the path of the file as it was given
    content: Any  # the waveform `(S,)` at 16 kHz, the text, or the image

    def embed(self, model: Any, processor: Any, branch: str | None) -> Tensor:
        """Embed the query, `(1, P)`; speech by `branch`."""
        if self.kind == "text":
            return embed_texts(model, processor, [self.content])
        if self.kind == "image":
            return embed_images(model, processor, [self.content])
        return embed_audio(model, processor, [self.content], branch=branch, sampling_rate=SAMPLING_RATE)


def found_items(index: EmbeddingIndex, scores: Tensor, rows: Tensor) -> list[list[dict[str, Any]]]:
    """Look up what `EmbeddingIndex.search` found, query by query: `rank`, `score`, `row`, and what the index keeps."""
    return [
        [
            {"rank": rank, "score": round(score, 6), "row": row, **index[row]}
            for rank, (score, row) in enumerate(zip(own_scores, own_rows, strict=True), 1)
        ]
        for own_scores, own_rows in zip(scores.tolist(), rows.tolist(), strict=True)
    ]


def search_report(
    model: Any,
    processor: Any,
    index: EmbeddingIndex,
    queries: Sequence[Query],
    found: Sequence[Sequence[dict[str, Any]]],
) -> Report:
    """Put the page of a search together, with all images and audio in it, and the keywords of spoken queries.

    Raises:
        FileNotFoundError: If a file that was found is not where it was when the index was built.
    """
    name = "/".join(Path(index.model["name"]).parts[-2:]) or "a model without a name"
    nearest = (
        f"The nearest {index.kind} in the embedding space of {name}, the best first, with their cosine similarity."
    )
    answers = []
    for query, items in zip(queries, found, strict=True):
        if query.kind == "speech":
            shown = spoken_query(model, processor, query.content)
            shown["detail"] = f"spoken, {len(query.content) / SAMPLING_RATE:.1f} seconds"
        elif query.kind == "image":
            shown = {"image": image_data_uri(query.content, _QUERY_SIDE)}
        else:
            shown = {"detail": "written"}
        title = f"“{query.value}”" if query.kind == "text" else Path(query.value).name
        answers.append(Answer(title, index.kind, [_indexed_item(index, item) for item in items], **shown))
    return Report(f"Found among {len(index):,} {index.kind}", summary=[nearest], answers=[(("", ""), answers)])


def _indexed_item(index: EmbeddingIndex, item: dict[str, Any]) -> FoundItem:
    source, name = index.source(item["row"]), item["id"]
    label = item.get("text") or Path(item.get("path", name)).name
    if index.kind == "images":
        return FoundItem(image_data_uri(load_image(source, name)), item["score"], label)
    return FoundItem(audio_data_uri(load_audio(source, name=name)), item["score"], label, f"{item['seconds']:.1f} s")
