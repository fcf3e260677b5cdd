"""HTML page of search results: queries and what they found in an index, to look at and to listen to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...hub_cards.report import Answer, FoundItem, Report
from ...hub_cards.space.waveform import audio_data_uri, image_data_uri
from ...modeling_speechclip_plus.audio_utils import SAMPLING_RATE, load_audio
from ...modeling_speechclip_plus.embedding import embed_audio, embed_images, embed_texts
from ...modeling_speechclip_plus.embedding_index import EmbeddingIndex
from ...modeling_speechclip_plus.image_utils import load_image
from ..evaluation.report import spoken_query

_QUERY_SIDE = 384  # pixels of an image that is a query


@dataclass(frozen=True)
class Query:
    """What is searched for.

    Attributes:
        kind: `"speech"`, `"text"` or `"image"`.
        value: The text, or the path of the file as it was given.
        content: The waveform `(S,)` at 16 kHz, the text, or the image.
    """

    kind: str
    value: str
    content: Any


def embed_query(model: Any, processor: Any, query: Query, branch: str | None) -> Tensor:
    """Embed one query, `(1, P)`; speech by `branch`."""
    if query.kind == "text":
        return embed_texts(model, processor, [query.content])
    if query.kind == "image":
        return embed_images(model, processor, [query.content])
    return embed_audio(model, processor, [query.content], branch=branch, sampling_rate=SAMPLING_RATE)


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
    """Put the page together, with all images and audio in it, and the keywords of spoken queries.

    Raises:
        FileNotFoundError: If a file that was found is not where it was when the index was built.
    """
    name = "/".join(Path(index.model["name"]).parts[-2:]) or "a model without a name"
    nearest = (
        f"The nearest {index.kind} in the embedding space of {name}, the best first, with their cosine similarity."
    )
    answers = [_answer(model, processor, index, *both) for both in zip(queries, found, strict=True)]
    return Report(f"Found among {len(index):,} {index.kind}", summary=[nearest], answers=[(("", ""), answers)])


def _answer(
    model: Any, processor: Any, index: EmbeddingIndex, query: Query, found: Sequence[dict[str, Any]]
) -> Answer:
    if query.kind == "speech":
        shown = spoken_query(model, processor, query.content)
        shown["detail"] = f"spoken, {len(query.content) / SAMPLING_RATE:.1f} seconds"
    elif query.kind == "image":
        shown = {"image": image_data_uri(query.content, _QUERY_SIDE)}
    else:
        shown = {"detail": "written"}
    title = f"“{query.value}”" if query.kind == "text" else Path(query.value).name
    return Answer(title, index.kind, [_found_item(index, item) for item in found], **shown)


def _found_item(index: EmbeddingIndex, item: dict[str, Any]) -> FoundItem:
    source, name = index.source(item["row"]), item["id"]
    label = item.get("text") or Path(item.get("path", name)).name
    if index.kind == "images":
        return FoundItem(image_data_uri(load_image(source, name)), item["score"], label)
    return FoundItem(audio_data_uri(load_audio(source, name=name)), item["score"], label, f"{item['seconds']:.1f} s")
