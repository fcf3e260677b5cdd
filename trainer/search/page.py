"""What queries found in an index, as a page to look at and to listen to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from torch import Tensor

from ...hub_cards.charts import speech_chart
from ...hub_cards.report import FoundImage, FoundItems, FoundSpeech, Report, audio_data_uri, image_data_uri
from ...modeling_speechclip_plus.audio_utils import SAMPLING_RATE, load_audio
from ...modeling_speechclip_plus.embedding_index import EmbeddingIndex
from ...modeling_speechclip_plus.image_utils import load_image
from ..evaluation.spoken_keywords import frame_seconds, spoken_keywords

_QUERY_SIDE = 384  # pixels of a picture that asked


@dataclass(frozen=True)
class Query:
    """What is searched for.

    Attributes:
        kind: "speech", "text" or "image".
        value: the text, or the path of the file as it was given.
        content: the waveform (S,) at 16 kHz, the text, or the picture.
    """

    kind: str
    value: str
    content: Any


@dataclass(frozen=True)
class Found:
    """An item that was found.

    Attributes:
        row: its row in the index.
        score: cosine similarity with the query.
        item: the index's entry.
    """

    row: int
    score: float
    item: dict[str, Any]


def found_items(index: EmbeddingIndex, scores: Tensor, rows: Tensor) -> list[list[Found]]:
    """Look up what `EmbeddingIndex.search` found, query by query."""
    return [
        [Found(row, score, index.items[row]) for score, row in zip(own_scores, own_rows, strict=True)]
        for own_scores, own_rows in zip(scores.tolist(), rows.tolist(), strict=True)
    ]


def search_report(
    model: Any, processor: Any, index: EmbeddingIndex, queries: Sequence[Query], found: Sequence[Sequence[Found]]
) -> Report:
    """Put the page together; pictures and recordings are read and put into it.

    Args:
        model: that embedded the queries; it reads the keywords out of spoken ones.
        processor: its processor.
        index: what was searched.
        queries: what was searched for.
        found: for each query what was found, best first.

    Raises:
        FileNotFoundError: if a file that was found is not where it was when the index was built.
    """
    kind = "pictures" if index.kind == "images" else "recordings"
    name = "/".join(Path(index.model["name"]).parts[-2:]) or "a model without a name"
    return Report(
        title=f"Found among {len(index):,} {kind}",
        summary=[
            f"The nearest {kind} in the embedding space of {name}, the best first, with their cosine similarity."
        ],
        found=[_found(model, processor, index, query, best) for query, best in zip(queries, found, strict=True)],
    )


def _found(model: Any, processor: Any, index: EmbeddingIndex, query: Query, best: Sequence[Found]) -> FoundItems:
    shown: dict[str, Any] = {}
    if query.kind == "speech":
        keywords, weights = spoken_keywords(model, processor, query.content, None)
        chart = speech_chart(query.content, weights, frame_seconds(model), keywords)
        shown = {
            "title": Path(query.value).name,
            "detail": f"spoken, {len(query.content) / SAMPLING_RATE:.1f} seconds"
            + (", with the keywords that the model heard" if keywords else ""),
            "audio": audio_data_uri(query.content),
            "chart": Markup(chart),
        }
    elif query.kind == "image":
        shown = {"title": Path(query.value).name, "source": image_data_uri(query.content, _QUERY_SIDE)}
    else:
        shown = {"title": f"“{query.value}”", "detail": "written"}
    if index.kind == "images":
        return FoundItems(images=[_picture(index, one) for one in best], **shown)
    return FoundItems(speech=[_recording(index, one) for one in best], **shown)


def _picture(index: EmbeddingIndex, one: Found) -> FoundImage:
    picture = load_image(index.source(one.row), name=one.item["id"])
    return FoundImage(image_data_uri(picture), one.score, label=label(one.item))


def _recording(index: EmbeddingIndex, one: Found) -> FoundSpeech:
    waveform = load_audio(index.source(one.row), name=one.item["id"])
    return FoundSpeech(audio_data_uri(waveform), label(one.item), one.score, speaker=f"{one.item['seconds']:.1f} s")


def label(item: dict[str, Any]) -> str:
    """What a reader would call an item: its text, or its name."""
    return item.get("text") or Path(item.get("path", item["id"])).name
