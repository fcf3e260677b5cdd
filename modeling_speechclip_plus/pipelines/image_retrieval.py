"""Images found by speech, recordings found by images, and either by text."""

import os
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from ..audio_utils import SAMPLING_RATE
from ..embedding_index import EmbeddingIndex
from .base import SpeechClipPlusPipeline, one_of, window_parameters
from .candidates import Candidates, EmbeddingStore, IndexCandidates
from .inputs import InputDataset, is_batch

CANDIDATE_BATCH_SIZE = 16
_GIVE = "give candidate_images=[...], candidate_audio=[...] or index=FOLDER, here or when the pipeline is made"


class SpeechImageRetrievalPipeline(SpeechClipPlusPipeline):
    """Rank images by how well they fit speech, or recordings by how well they fit an image.

    Task "speech-image-retrieval". What is searched is given when the pipeline is made or with a call; it is embedded
    once and kept. Speech, images and texts are all embedded in CLIP's space, so any of them may search.

    A recording longer than a window has an embedding for each window, and its best one counts: an hour of speech
    fits the picture of what is said in any minute of it. `return_timestamps=True` tells where.

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
        self._own_store, self._store = EmbeddingStore(), EmbeddingStore()
        self._own: tuple[Hashable, Candidates | IndexCandidates] | None = None
        self._checked_index: EmbeddingIndex | None = None
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
            audio: Speech to search for, in place of `inputs`: a path, bytes, a binary file object, an array at 16 kHz,
                or a dictionary with "raw" or "array" and "sampling_rate" or with "bytes" or "path"; or a list, a
                column, a data set or a generator of them.
            images: Images to search for, in place of `inputs`: what the processor takes, or many of them.
            text: A text to search for, in place of `inputs`, or many of them.
            batch_size: Images, texts or windows that are embedded together; 1 if not given, and 16 for candidates.
            num_workers: As in all pipelines.
            **kwargs: `candidate_images`, `candidate_audio` or `index`: what to search, in place of what the pipeline
                was made with: a list or column of images or of recordings, or an `EmbeddingIndex` or its folder.
                `top_k`: how many to find, 5 if not given. `return_timestamps`: whether to tell which window of the
                recording fits best. `branch`: the one that embeds speech, the configured `retrieval_branch` if not
                given. `chunk_length_s`, `stride_length_s`: windows in which recordings are read, see
                `SpeechKeywordExtractionPipeline`.

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
        **unknown: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        postprocess: dict[str, Any] = {}
        given = {"candidate_images": candidate_images, "candidate_audio": candidate_audio, "index": index}
        if any(value is not None for value in given.values()):
            postprocess["candidates"] = one_of(**given)
        if (embedded := unknown.pop("embedded", None)) is not None:
            postprocess["embedded"] = embedded
        self._reject_unknown(unknown)
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
        """Embed what is searched, or open the index of it."""
        if source is None:
            raise ValueError(f"There is nothing to search: {_GIVE}.")
        name, items = source
        own = source is self._postprocess_params.get("candidates")
        settings: Hashable = None
        if name == "candidate_audio":
            settings = forward.get("branch"), self._windowing(**preprocess)
        if own and self._own is not None and self._own[0] == settings:
            return self._own[1]
        if name == "index":
            candidates: Candidates | IndexCandidates = self._open_index(items)
        else:
            candidates = self._embed_candidates(
                name, items, self._own_store if own else self._store, settings, preprocess, forward, batch_size
            )
        if own:
            self._own = settings, candidates
        return candidates

    def _open_index(self, index: Any) -> IndexCandidates:
        index = EmbeddingIndex.load(os.fspath(index)) if isinstance(index, (str, os.PathLike)) else index
        if not isinstance(getattr(index, "items", None), Sequence):
            raise TypeError(f"index: expected an EmbeddingIndex or its folder, got {type(index).__name__}.")
        if index is not self._checked_index:
            index.check_model(self.model)
            self._checked_index = index
        return IndexCandidates(index)

    def _embed_candidates(
        self,
        name: str,
        items: Any,
        store: EmbeddingStore,
        settings: Hashable,
        preprocess: dict[str, Any],
        forward: dict[str, Any],
        batch_size: int,
    ) -> Candidates:
        kind = name.removeprefix("candidate_")
        if not is_batch(kind, items) and not isinstance(items, Dataset):
            raise TypeError(f"{name}: expected a list or a column, got {type(items).__name__}.")
        if len(items) == 0:
            raise ValueError(f"{name} is empty: there is nothing to search.")
        if isinstance(items, (list, tuple)):
            items = list(items)  # theirs may change later

        def embed(numbers: list[int]) -> list[Any]:
            inputs = InputDataset(kind, items, name, numbers)
            return list(self.get_iterator(inputs, 0, batch_size, preprocess, forward, {}))

        return store.candidates(kind, items, settings, embed)

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
        ranked = []
        for found in embedded.search(embeds, top_k):
            ranked.append({"score": found.score, "index": found.index, **found.fields})
            if return_timestamps:
                span = spans[found.query_window] if embedded.kind == "images" else found.span
                ranked[-1]["timestamp"] = tuple(sample / SAMPLING_RATE for sample in span or ())
        return ranked


def _check_timestamps(kind: str, candidates: Candidates | IndexCandidates) -> None:
    if candidates.kind == "images" and kind != "audio":
        raise ValueError("return_timestamps: neither the query nor the candidates are recordings.")
    if candidates.kind == "audio" and isinstance(candidates, IndexCandidates):
        raise ValueError(
            "return_timestamps: an index keeps one embedding for a recording, not when it is what fits; give the "
            "recordings as candidate_audio."
        )
