"""Retrieval of images by speech, of recordings by images, and of either by text."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..audio_utils import SAMPLING_RATE
from .base import InputDataset, SpeechClipPlusPipeline, is_batch, one_of, window_parameters

CANDIDATE_BATCH_SIZE = 16


# What was found: its answer, which window of the query fits best, and from where to where the candidate's own best
# window goes, in samples (None where it has no windows).
Match = tuple[dict[str, Any], int, tuple[int, int] | None]


@dataclass
class Candidates:
    """Embedded images or recordings.

    Attributes:
        kind: `"images"` or `"audio"`.
        items: What they are, as given.
        embeds: `(R, P)`, a row for each image, and one for each window of a recording.
        owners: `(R,)` int64, the candidate of each row.
        spans: From where to where each row's window goes, in samples; `None` for images.
    """

    kind: str
    items: Any
    embeds: Tensor
    owners: Tensor
    spans: list[tuple[int, int] | None]

    def search(self, queries: Tensor, top_k: int) -> list[Match]:
        """Find the candidates nearest to a query of windows `(W, P)`, best first; of equal scores the first."""
        scores, windows = (queries @ self.embeds.T).max(dim=0)  # (R,)
        best = torch.full((len(self.items),), -torch.inf).scatter_reduce(0, self.owners, scores, "amax")
        name = {"images": "image", "audio": "audio"}[self.kind]
        found = []
        for index in best.argsort(descending=True, stable=True)[:top_k].tolist():
            rows = (self.owners == index).nonzero().flatten()
            row = int(rows[scores[rows].argmax()])
            answer = {"score": best[index].item(), "index": index, name: self.items[index]}
            found.append((answer, int(windows[row]), self.spans[row]))
        return found


@dataclass
class IndexCandidates:
    """An `EmbeddingIndex`, which has one embedding for each image or recording."""

    index: Any

    @property
    def kind(self) -> str:
        """`"images"` or `"audio"`."""
        return self.index.kind

    def search(self, queries: Tensor, top_k: int) -> list[Match]:
        """Find the items nearest to a query of windows `(W, P)`, best first; of equal scores the first."""
        scores, rows = self.index.search(queries, top_k)  # (W, k)
        best: dict[int, tuple[float, int]] = {}
        for window, (line, numbers) in enumerate(zip(scores.tolist(), rows.tolist(), strict=True)):
            for score, row in zip(line, numbers, strict=True):
                if row not in best or score > best[row][0]:
                    best[row] = score, window
        order = sorted(best, key=lambda row: (-best[row][0], row))[:top_k]
        return [({"score": best[row][0], "index": row, **self.index[row]}, best[row][1], None) for row in order]


class SpeechImageRetrievalPipeline(SpeechClipPlusPipeline):
    """Rank images by how well they fit speech, or recordings by how well they fit an image.

    Task "speech-image-retrieval". What is searched is given when the pipeline is made, embedded once and kept, or with
    a call. Speech, images and texts are all embedded in CLIP's space, so any of them may search.

    A recording longer than a window has an embedding for each window, and its best one counts: an hour of speech
    fits the image of what is said in any minute of it. `return_timestamps=True` tells where.

    Example:
    ```python
    from transformers import pipeline
    import speechclip_plus

    searcher = pipeline(
        "speech-image-retrieval", model="quickstart/model", candidate_images=["first.png", "second.png"]
    )
    searcher("query.wav", top_k=1)  # [{"score": 0.31, "index": 0, "image": "first.png"}]
    searcher(text="a red circle")
    searcher("first.png", candidate_audio=["query.wav", "other.wav"])  # [{"score": 0.31, "index": 0, "audio": ...
    ```
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._own: tuple[Hashable, Candidates] | None = None  # those that the pipeline was made with
        self._checked: tuple[Any, Hashable] | None = None
        super().__init__(*args, **kwargs)

    def __call__(
        self,
        inputs: Any = None,
        *,
        audio: Any = None,
        images: Any = None,
        text: Any = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Search.

        Args:
            inputs: What to search for: speech where images are searched, images where recordings are.
            audio: Speech to search for, in place of `inputs`: what `load_audio` takes (arrays at 16 kHz), or a
                dictionary with "raw" and "sampling_rate"; or a list, a column, a data set or a generator of them.
            images: Images to search for, in place of `inputs`: what the processor takes, or many of them.
            text: A text to search for, in place of `inputs`, or many of them.
            batch_size: Images, texts or windows that are embedded together; 1 if not given, and 16 for candidates.
            num_workers: As in all pipelines.
            **kwargs: `candidate_images`, `candidate_audio` or `index`: a list or column of images or of recordings, or
                an `EmbeddingIndex`, to search in place of what the pipeline was made with. `top_k`: how many to find,
                5 if not given. `return_timestamps`: whether to tell which window of the recording fits best. `branch`,
                `chunk_length_s`, `stride_length_s`: as in `SpeechFeatureExtractionPipeline`.

        Returns:
            For one input a list of dictionaries, best first: `score` (cosine similarity), `index` (of the candidate)
            and `image` or `audio` (the candidate as given), or from an index its `id`, `path` and what else it keeps;
            with `return_timestamps` `timestamp`, (start, end) in seconds of the best window, of the candidates where
            those are recordings and of the query otherwise. For a list of inputs a list of such lists; for a data set
            or a generator an iterator.

        Raises:
            TypeError: If an argument is unknown, an input is of a wrong kind, or not one of `inputs`, `audio`,
                `images` and `text` is given.
            ValueError: If there is nothing to search, an input or a candidate cannot be used, or the index was made by
                another model.
        """
        preprocess, forward, postprocess = self._sanitize_parameters(**kwargs)
        asked = {**self._postprocess_params, **postprocess}
        candidates = self._candidates(
            asked.get("candidates"),
            {**self._preprocess_params, **preprocess},
            {**self._forward_params, **forward},
            batch_size or self._batch_size or CANDIDATE_BATCH_SIZE,
        )
        kind, given = one_of(inputs=inputs, audio=audio, images=images, text=text)
        if kind == "inputs":
            kind = "audio" if candidates.kind == "images" else "images"
        if asked.get("return_timestamps"):
            _check_timestamps(kind, candidates)
        kwargs |= {"batch_size": batch_size, "num_workers": num_workers, "embedded": candidates}
        return self._answer(kind, given, **kwargs)

    def _sanitize_parameters(
        self,
        candidate_images: Any = None,
        candidate_audio: Any = None,
        index: Any = None,
        top_k: int | None = None,
        return_timestamps: bool | None = None,
        branch: str | None = None,
        chunk_length_s: float | None = None,
        stride_length_s: float | Sequence[float] | None = None,
        embedded: Candidates | IndexCandidates | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        postprocess: dict[str, Any] = {}
        given = {"candidate_images": candidate_images, "candidate_audio": candidate_audio, "index": index}
        if any(value is not None for value in given.values()):
            postprocess["candidates"] = one_of(**given)
        if embedded is not None:  # from `__call__`, which makes them once for all its inputs
            postprocess["embedded"] = embedded
        if top_k is not None:
            if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
                raise ValueError(f"top_k={top_k!r}: expected a whole number from 1.")
            postprocess["top_k"] = top_k
        if return_timestamps is not None:
            postprocess["return_timestamps"] = return_timestamps
        forward = {} if branch is None else {"branch": self._check_branch(branch)}
        return window_parameters(chunk_length_s, stride_length_s), forward, postprocess

    def _candidates(
        self,
        source: tuple[str, Any] | None,
        preprocess: dict[str, Any],
        forward: dict[str, Any],
        batch_size: int,
    ) -> Candidates | IndexCandidates:
        """Embed what is searched, unless that was done, or check the index of it."""
        if source is None:
            raise ValueError(
                "There is nothing to search: give candidate_images=[...], candidate_audio=[...] or "
                "index=EmbeddingIndex.load(...), here or when the pipeline is made."
            )
        name, items = source
        weights = self._weights_state()
        if name == "index":
            return self._index_candidates(items, weights)
        own = source is self._postprocess_params.get("candidates")
        settings = weights, forward.get("branch"), self._windowing(**preprocess)
        if own and self._own is not None and self._own[0] == settings:
            return self._own[1]
        candidates = self._embed_candidates(name, items, preprocess, forward, batch_size)
        if own:
            self._own = settings, candidates
        return candidates

    def _weights_state(self) -> Hashable:
        """Another one when a weight was changed in place or replaced: what was embedded before counts no longer."""
        tensors = chain(self.model.parameters(), self.model.buffers())
        return hash(tuple((value.data_ptr(), -1 if value.is_inference() else value._version) for value in tensors))

    def _index_candidates(self, index: Any, weights: Hashable) -> IndexCandidates:
        if not hasattr(index, "check_model"):
            raise TypeError(f"index: expected EmbeddingIndex.load(folder), got {type(index).__name__}.")
        if self._checked is None or self._checked[0] is not index or self._checked[1] != weights:
            index.check_model(self.model)
            self._checked = index, weights
        return IndexCandidates(index)

    def _embed_candidates(
        self, name: str, items: Any, preprocess: dict[str, Any], forward: dict[str, Any], batch_size: int
    ) -> Candidates:
        kind = name.removeprefix("candidate_")
        if not is_batch(kind, items) and not isinstance(items, Dataset):
            raise TypeError(f"{name}: expected a list or a column, got {type(items).__name__}.")
        if len(items) == 0:
            raise ValueError(f"{name} is empty: there is nothing to search.")
        if isinstance(items, (list, tuple)):
            items = list(items)  # theirs may change later
        parts = list(self.get_iterator(InputDataset(kind, items, name), 0, batch_size, preprocess, forward, {}))
        owners = torch.arange(len(items)).repeat_interleave(torch.tensor([len(embeds) for embeds, _ in parts]))
        spans = [span for _, own in parts for span in own]
        return Candidates(kind, items, torch.cat([embeds for embeds, _ in parts]), owners, spans)

    def _forward(self, model_inputs: dict[str, Any], branch: str | None = None) -> dict[str, Any]:
        return {
            "is_last": model_inputs["is_last"],
            "embeds": self._embed(model_inputs, branch),
            **({"span": model_inputs["span"]} if "span" in model_inputs else {}),
        }

    def postprocess(
        self,
        model_outputs: list[dict[str, Any]],
        embedded: Candidates | IndexCandidates | None = None,
        top_k: int = 5,
        return_timestamps: bool = False,
        candidates: Any = None,
    ) -> Any:
        """Compare a query with the candidates; without any, give its embeddings (W, P) and what each is of."""
        embeds = torch.cat([output["embeds"] for output in model_outputs])
        spans = [output.get("span") for output in model_outputs]
        if embedded is None:
            return embeds, spans
        answers = []
        for answer, query_window, span in embedded.search(embeds, top_k):
            if return_timestamps:
                span = spans[query_window] if embedded.kind == "images" else span
                answer["timestamp"] = tuple(sample / SAMPLING_RATE for sample in span or ())
            answers.append(answer)
        return answers


def _check_timestamps(kind: str, candidates: Candidates | IndexCandidates) -> None:
    if candidates.kind == "images" and kind != "audio":
        raise ValueError("return_timestamps: neither the query nor the candidates are recordings.")
    if candidates.kind == "audio" and isinstance(candidates, IndexCandidates):
        raise ValueError(
            "return_timestamps: an index keeps one embedding for a recording, not when it is what fits; give the "
            "recordings as candidate_audio."
        )
