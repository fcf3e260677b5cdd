"""Retrieval of images by speech, of recordings by images, and of either by text."""

from collections.abc import Hashable
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .base import InputDataset, SpeechClipPlusPipeline, is_batch, one_of

CANDIDATE_BATCH_SIZE = 16


@dataclass
class Candidates:
    """Embedded images or recordings.

    Attributes:
        kind: `"images"` or `"audio"`.
        items: What they are, as given.
        embeds: `(R, P)`, a row for each image, and one for each window of a recording.
        owners: The candidate of each row.
    """

    kind: str
    items: Any
    embeds: Tensor
    owners: list[int]

    def search(self, queries: Tensor, top_k: int) -> list[dict[str, Any]]:
        """Find the candidates nearest to a query of windows `(W, P)`, best first; of equal scores the first."""
        scores = (queries @ self.embeds.T).max(dim=0).values  # (R,)
        best: dict[int, float] = {}
        for row in scores.argsort(descending=True, stable=True).tolist():
            best.setdefault(self.owners[row], scores[row].item())
        name = {"images": "image", "audio": "audio"}[self.kind]
        return [{"score": best[i], "index": i, name: self.items[i]} for i in islice(best, top_k)]


class SpeechImageRetrievalPipeline(SpeechClipPlusPipeline):
    """Rank images by how well they fit speech, or recordings by how well they fit an image.

    Task "speech-image-retrieval". What is searched is given when the pipeline is made, embedded once and kept, or with
    a call. Speech, images and texts are all embedded in CLIP's space, so any of them may search.

    A recording longer than a window has an embedding for each window, and its best one counts: an hour of speech
    fits the image of what is said in any minute of it.

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

    _arguments = {
        **SpeechClipPlusPipeline._arguments,
        "branch": ("forward",),
        "candidates": ("postprocess",),
        "embedded": ("postprocess",),  # from `__call__`, which makes them once for all its inputs
        "top_k": ("postprocess",),
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._own: tuple[Hashable, Candidates] | None = None  # those that the pipeline was made with, and by what
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
            audio: In place of `inputs`, as `images` and `text`: see `SpeechFeatureExtractionPipeline`.
            images: Images to search for.
            text: Texts to search for.
            batch_size: Images, texts or windows that are embedded together; 1 if not given, and 16 for candidates.
            num_workers: Processes that read them.
            **kwargs: `candidate_images` or `candidate_audio`: a list or column of images or of recordings to search in
                place of those that the pipeline was made with. `top_k`: how many to find, 5 if not given. `branch`,
                `chunk_length_s`, `stride_length_s`: as in `SpeechFeatureExtractionPipeline`.

        Returns:
            For one input a list of dictionaries, best first: `score` (cosine similarity), `index` (of the candidate)
            and `image` or `audio` (the candidate as given). For a list of inputs a list of such lists; for a data set
            or a generator an iterator.
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
        kwargs |= {"batch_size": batch_size, "num_workers": num_workers, "embedded": candidates}
        return self._answer(kind, given, **kwargs)

    def _sanitize_parameters(
        self, candidate_images: Any = None, candidate_audio: Any = None, **given: Any
    ) -> tuple[dict[str, Any], ...]:
        if candidate_images is not None or candidate_audio is not None:
            given["candidates"] = one_of(candidate_images=candidate_images, candidate_audio=candidate_audio)
        top_k = given.get("top_k")
        if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise ValueError(f"top_k={top_k!r}: expected a whole number from 1.")
        return super()._sanitize_parameters(**given)

    def _candidates(
        self, source: tuple[str, Any] | None, preprocess: dict[str, Any], forward: dict[str, Any], batch_size: int
    ) -> Candidates:
        """Embed what is searched, unless that was done."""
        if source is None:
            raise ValueError(
                "There is nothing to search: give candidate_images=[...] or candidate_audio=[...], here or when the "
                "pipeline is made."
            )
        settings = self._weights_state(), forward.get("branch"), self._windowing(**preprocess)
        is_own = source is self._postprocess_params.get("candidates")
        if is_own and self._own is not None and self._own[0] == settings:
            return self._own[1]
        candidates = self._embed_candidates(*source, preprocess, forward, batch_size)
        if is_own:
            self._own = settings, candidates
        return candidates

    def _weights_state(self) -> Hashable:
        """Another one when a weight was changed in place or replaced: what was embedded before counts no longer."""
        tensors = chain(self.model.parameters(), self.model.buffers())
        return hash(tuple((value.data_ptr(), -1 if value.is_inference() else value._version) for value in tensors))

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
        owners = [index for index, embeds in enumerate(parts) for _ in embeds]
        return Candidates(kind, items, torch.cat(parts), owners)

    def _forward(self, model_inputs: dict[str, Any], branch: str | None = None) -> dict[str, Any]:
        return {"is_last": model_inputs["is_last"], "embeds": self._embed(model_inputs, branch)}

    def postprocess(
        self,
        model_outputs: list[dict[str, Any]],
        embedded: Candidates | None = None,
        top_k: int = 5,
        candidates: Any = None,
    ) -> Any:
        """Compare a query with the candidates; without any, give the embeddings of its windows (W, P)."""
        embeds = torch.cat([output["embeds"] for output in model_outputs])
        return embeds if embedded is None else embedded.search(embeds, top_k)
