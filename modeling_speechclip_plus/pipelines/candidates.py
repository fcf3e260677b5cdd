"""What a search looks through: embeddings of images or recordings, and what they are of."""

import hashlib
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Found:
    """A candidate that was found.

    Attributes:
        score: Cosine similarity of the best window of the query and the best of the candidate.
        index: Which candidate it is, from 0.
        fields: What is known of it.
        query_window: Which window of the query fits best.
        span: From where to where the best window of the candidate goes, in samples; None where it has no windows.
    """

    score: float
    index: int
    fields: dict[str, Any]
    query_window: int
    span: tuple[int, int] | None = None


@dataclass
class Candidates:
    """Embedded images or recordings.

    Attributes:
        kind: "images" or "audio".
        items: What they are, as given.
        embeds: (R, P), a row for each image, and one for each window of a recording.
        owners: (R,) int64, the candidate of each row.
        spans: From where to where each row's window goes, in samples; None for images.
    """

    kind: str
    items: Any
    embeds: Tensor
    owners: Tensor
    spans: list[tuple[int, int] | None]

    def search(self, queries: Tensor, top_k: int) -> list[Found]:
        """Find the candidates nearest to a query of windows (W, P), best first; of equal scores the first."""
        scores, windows = (queries @ self.embeds.T).max(dim=0)  # (R,)
        best = torch.full((len(self.items),), -torch.inf).scatter_reduce(0, self.owners, scores, "amax")
        order = best.argsort(descending=True, stable=True)[:top_k].tolist()
        name = {"images": "image", "audio": "audio"}[self.kind]
        found = []
        for index in order:
            rows = (self.owners == index).nonzero().flatten()
            row = int(rows[scores[rows].argmax()])
            fields = {name: self.items[index]}
            found.append(Found(best[index].item(), index, fields, int(windows[row]), self.spans[row]))
        return found


@dataclass
class IndexCandidates:
    """An `EmbeddingIndex` on disk, which keeps one embedding for each image or recording."""

    index: Any

    @property
    def kind(self) -> str:
        """What the index is of: "images" or "audio"."""
        return {"images": "images", "recordings": "audio"}[self.index.kind]

    def search(self, queries: Tensor, top_k: int) -> list[Found]:
        """Find the items nearest to a query of windows (W, P), best first."""
        scores, rows = self.index.search(queries, top_k)  # (W, k)
        best: dict[int, tuple[float, int]] = {}
        for window, (line, numbers) in enumerate(zip(scores.tolist(), rows.tolist(), strict=True)):
            for score, row in zip(line, numbers, strict=True):
                if row not in best or score > best[row][0]:
                    best[row] = score, window
        order = sorted(best, key=lambda row: (-best[row][0], row))[:top_k]
        # Where the bytes of an item stand in the index is no news; `index.source(row)` reads them.
        fields = [{key: value for key, value in self.index.items[row].items() if key != "bytes"} for row in order]
        return [Found(best[row][0], row, known, best[row][1]) for row, known in zip(order, fields, strict=True)]


@dataclass
class EmbeddingStore:
    """Embeddings of the candidates that were searched last, found again by their content."""

    known: dict[Hashable, tuple[Tensor, list[tuple[int, int] | None]]] = field(default_factory=dict)

    def candidates(
        self, kind: str, items: Sequence[Any], settings: Hashable, embed: Callable[[list[int]], list[Any]]
    ) -> Candidates:
        """Embed what is not known yet, and forget what is not asked for any more.

        Args:
            kind: "images" or "audio".
            items: The candidates.
            settings: What else their embeddings depend on.
            embed: From numbers of items to the embeddings (W, P) and the spans of each.
        """
        keys: list[Hashable] = [(settings, kind, content_key(items[index])) for index in range(len(items))]
        new = {key: index for index, key in reversed(list(enumerate(keys))) if key not in self.known}
        numbers = sorted(new.values())
        known = {key: self.known[key] for key in keys if key in self.known}
        known |= dict(zip([keys[index] for index in numbers], embed(numbers), strict=True))
        self.known = known
        parts = [known[key] for key in keys]
        owners = torch.arange(len(items)).repeat_interleave(torch.tensor([len(embeds) for embeds, _ in parts]))
        spans = [span for _, own in parts for span in own]
        return Candidates(kind, items, torch.cat([embeds for embeds, _ in parts]), owners, spans)


def content_key(item: Any) -> Hashable:
    """What tells an image or a recording from others: a file's name, size and time, or the bytes themselves."""
    if isinstance(item, (str, os.PathLike)):
        path = os.path.abspath(os.path.expanduser(item))
        if os.path.isfile(path):
            facts = os.stat(path)
            return path, facts.st_mtime_ns, facts.st_size
        return os.fspath(item)
    if isinstance(item, Mapping):
        return tuple(sorted((str(key), content_key(value)) for key, value in item.items()))
    if isinstance(item, torch.Tensor):
        content = item.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        return str(item.dtype), tuple(item.shape), _images_digest(content.data)
    if isinstance(item, np.ndarray):
        return item.dtype.str, item.shape, _images_digest(np.ascontiguousarray(item).data)
    if isinstance(item, (bytes, bytearray, memoryview)):
        return _images_digest(item)
    if hasattr(item, "tobytes") and hasattr(item, "mode"):  # a PIL image
        return item.mode, item.size, _images_digest(item.tobytes())
    if isinstance(item, (list, tuple)):
        return _images_digest(np.asarray(item).tobytes())
    return id(item) if hasattr(item, "read") else repr(item)


def _images_digest(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()
