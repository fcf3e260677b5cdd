"""Embeddings of many pictures or recordings on disk, searched exactly.

An index is a folder:

- `index.json`: what it is of, and which model made it;
- `embeddings.npy`: `(N, P)` float32, one row of unit length per item, read by memory mapping;
- `items.jsonl`: one line per item, and `items.npy`: `(N + 1,)` int64, where in it each line begins;
- `files.bin`: the content of those items that came as bytes and not as files of their own.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .weight_fingerprint import same_weights, weight_fingerprint

FORMAT = "speechclip-plus-index"
VERSION = 1
FACTS, EMBEDDINGS, ITEMS, PLACES, FILES = "index.json", "embeddings.npy", "items.jsonl", "items.npy", "files.bin"
_BLOCK_BYTES = 2 * 2**20  # of rows in float64 at a time: what fits in a cache is several times as fast
_SCORE_BYTES = 2**20  # of scores at a time, for the same reason
_QUERIES = 256  # at a time
_ROW_BITS = 32
_NEEDED = ("kind", "branch", "model", "count", "width", "bytes")


class IndexItems(Sequence[dict[str, Any]]):
    """What the rows of an index are of, read from disk when asked for."""

    def __init__(self, folder: Path) -> None:
        self._places = np.load(folder / PLACES, mmap_mode="r")
        self._lines = np.memmap(folder / ITEMS, mode="r") if self._places[-1] else np.empty(0, np.uint8)
        if len(self._lines) != self._places[-1]:
            raise ValueError(f"{ITEMS} has {len(self._lines)} bytes, expected {self._places[-1]}")

    def __len__(self) -> int:
        return len(self._places) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = int(index) + len(self) * (index < 0)
        if not 0 <= row < len(self):
            raise IndexError(f"There is no row {int(index)}: the index has {len(self)}.")
        return json.loads(self._lines[self._places[row] : self._places[row + 1]].tobytes())


class EmbeddingIndex:
    """Embeddings of pictures or recordings, and what they are of.

    `speechclip-plus index build` (`speechclip_plus.build_index`) makes one; `EmbeddingIndex.load` opens it.

    Attributes:
        folder: where it lies.
        facts: the content of `index.json`.
        embeddings: (N, P) float32, memory-mapped, rows of unit length.
        items: N dictionaries, read when asked for: `id`; `path` of the file, or for what came as bytes `bytes`, its
            place and length in `files.bin`; `text`, if there is one; for recordings `seconds`.

    Example:
    ```python
    index = EmbeddingIndex.load("gallery")
    scores, rows = index.search(model.get_audio_features(**speech).pooler_output, top_k=5)
    print(index.items[rows[0, 0]]["path"])
    ```
    """

    def __init__(self, folder: Path, facts: dict[str, Any], embeddings: np.ndarray, items: IndexItems) -> None:
        self.folder, self.facts, self.embeddings, self.items = folder, facts, embeddings, items

    @classmethod
    def load(cls, folder: str | Path) -> "EmbeddingIndex":
        """Open an index. Nothing is read but its facts: what is searched is read then.

        Raises:
            FileNotFoundError: if there is no index, or a part of it is missing.
            ValueError: if it is unfinished, of a newer format, or its parts do not fit together.
        """
        folder = Path(folder).expanduser()
        if not (folder / FACTS).is_file():
            what = "has no index.json" if folder.is_dir() else "is not there"
            raise FileNotFoundError(f"{folder} {what}: expected an index made by `speechclip-plus index build`.")
        facts = _read_facts(folder / FACTS)
        for name in (EMBEDDINGS, ITEMS, PLACES, *([FILES] if facts["bytes"] else [])):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"The index {folder} lacks its {name}: copy or build it again.")
        try:
            embeddings = np.load(folder / EMBEDDINGS, mmap_mode="r")
            items = IndexItems(folder)
        except (ValueError, EOFError, OSError) as error:  # what numpy says of a file that is cut off, or none of its
            raise ValueError(f"The index {folder} is damaged: {error}. Copy or build it again.") from error
        expected = (facts["count"], facts["width"])
        if embeddings.shape != expected or embeddings.dtype != np.float32 or len(items) != facts["count"]:
            raise ValueError(
                f"The index {folder} does not fit together: {FACTS} says {expected}, {EMBEDDINGS} has "
                f"{embeddings.shape} {embeddings.dtype}, {ITEMS} {len(items)} items. Copy or build it again."
            )
        if facts["bytes"] and (size := (folder / FILES).stat().st_size) != facts["bytes"]:
            raise ValueError(
                f"{folder / FILES} has {size} bytes, expected {facts['bytes']}: the index is damaged. Copy or build "
                "it again."
            )
        return cls(folder, facts, embeddings, items)

    @property
    def kind(self) -> str:
        """`"images"` or `"recordings"`."""
        return self.facts["kind"]

    @property
    def branch(self) -> str | None:
        """The branch that embedded the recordings; None for pictures, which CLIP embeds."""
        return self.facts["branch"]

    @property
    def model(self) -> dict[str, Any]:
        """Which model made it: `name` (repository or folder) and `weights`, see `weight_fingerprint`."""
        return self.facts["model"]

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        return f"EmbeddingIndex({str(self.folder)!r}: {len(self)} {self.kind} by {self.model['name']})"

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return EmbeddingIndex.load, (self.folder,)  # a worker process maps the files anew instead of copying them

    def source(self, row: int) -> dict[str, Any]:
        """What a row is of, as the processor takes it: `{"path": ..., "bytes": ...}`, one of them None.

        Raises:
            FileNotFoundError: if the file is no longer where it was.
        """
        item = self.items[row]
        if "bytes" in item:
            place, size = item["bytes"]
            with (self.folder / FILES).open("rb") as stream:
                stream.seek(place)
                return {"path": None, "bytes": stream.read(size)}
        if not Path(item["path"]).is_file():
            raise FileNotFoundError(
                f"There is no file {item['path']} any more, which the index {self.folder} is of: move it back, or "
                "build the index again."
            )
        return {"path": item["path"], "bytes": None}

    def check_model(self, model: Any) -> None:
        """Check that a model's embeddings may be compared with those of the index.

        Pictures are embedded by CLIP alone, so that every model with the same CLIP fits an index of them, whatever its
        branches have learned since.

        Raises:
            ValueError: if the model has another width, lacks the branch, or has other weights.
        """
        made_by = f"the index {self.folder} ({self.kind}, made by {self.model['name']})"
        name = f"the model {model.name_or_path or type(model).__name__}"
        way_out = "Search with the model that made it, or build an index with this one."
        width = model.config.clip_config.projection_dim
        if width != self.embeddings.shape[1]:
            raise ValueError(
                f"{name} embeds in {width} dimensions, {made_by} in {self.embeddings.shape[1]}. {way_out}"
            )
        if self.branch is not None and not getattr(model.config, f"has_{self.branch}"):
            raise ValueError(
                f"{name} ({model.config.variant}) has no {self.branch} branch, which embedded {made_by}. {way_out}"
            )
        same = same_weights(weight_fingerprint(model, self.kind, self.branch), self.model["weights"])
        if same is None:
            raise ValueError(
                f"{name} is in {model.dtype} and {made_by} in {', '.join(self.model['weights'])}: these cannot be "
                "compared. Load the model in the same dtype or in float32."
            )
        if not same:
            raise ValueError(f"{name} has other weights than those of {made_by}. {way_out}")

    def search(self, queries: Tensor, top_k: int = 5) -> tuple[Tensor, Tensor]:
        """Find the nearest rows of each query by dot product, exactly and in bounded memory.

        Products are summed in float64 and rounded to float32 once, so that equal rows have equal scores wherever they
        stand; of equal scores the lower row comes first.

        Args:
            queries: (Q, P) embeddings; of unit length for cosine similarities.
            top_k: how many to find.

        Returns:
            Scores, float32, best first, and rows, int64; both (Q, min(top_k, N)), on the CPU.

        Raises:
            ValueError: for queries of another shape or with NaN, or top_k below 1.
        """
        queries, top_k = self.checked_queries(queries, top_k)
        found = []
        for part in queries.split(_QUERIES):
            best = torch.empty(len(part), 0, dtype=torch.long)
            for start, scores in self._scores(part):
                keys = _keys(scores, start)
                best = torch.cat([best, keys.topk(min(top_k, keys.shape[1]), dim=1).values], dim=1)
                best = best.topk(min(top_k, best.shape[1]), dim=1).values
            found.append(best)
        return _scores_and_rows(torch.cat(found))

    def checked_queries(self, queries: Tensor, top_k: int) -> tuple[Tensor, int]:
        """Return queries in float64 on the CPU, and how many rows can be found; raises as `search`."""
        width = self.embeddings.shape[1]
        if queries.dim() != 2 or queries.shape[1] != width:
            raise ValueError(
                f"Queries must have the shape (Q, {width}), the width of the index {self.folder}; got "
                f"{tuple(queries.shape)}."
            )
        if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
            raise ValueError(f"top_k={top_k!r}: expected a whole number from 1.")
        queries = queries.detach().to("cpu", torch.float64)
        if not queries.isfinite().all():
            wrong = (~queries.isfinite().all(dim=1)).nonzero().flatten().tolist()
            raise ValueError(f"The queries {wrong} hold NaN or infinity, which is near to nothing.")
        return queries, min(top_k, len(self))

    def _scores(self, queries: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield the first row of a chunk and its scores (Q, C) in float32, for queries (Q, P) in float64."""
        count, width = self.embeddings.shape
        block = max(1, _BLOCK_BYTES // (8 * width))
        chunk = max(block, _SCORE_BYTES // (4 * max(1, len(queries))) // block * block)
        for start in range(0, count, chunk):
            end = min(start + chunk, count)
            scores = torch.empty(len(queries), end - start)
            for first in range(start, end, block):
                rows = torch.from_numpy(self.embeddings[first : min(first + block, end)].astype(np.float64))
                scores[:, first - start : first - start + len(rows)] = queries @ rows.T
            yield start, scores


def _keys(scores: Tensor, first_row: int) -> Tensor:
    """Join scores (Q, C) and their rows into whole numbers that sort by score, and of equal scores by lower row."""
    bits = (scores + 0.0).view(torch.int32)  # -0.0 becomes 0.0, its equal
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # floats sort as these integers do
    rows = torch.arange(first_row, first_row + scores.shape[1])
    return (ordered.long() << _ROW_BITS) | (2**_ROW_BITS - 1 - rows)


def _scores_and_rows(keys: Tensor) -> tuple[Tensor, Tensor]:
    ordered = (keys >> _ROW_BITS).to(torch.int32)
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    return bits.view(torch.float32), 2**_ROW_BITS - 1 - (keys & (2**_ROW_BITS - 1))


def _read_facts(file: Path) -> dict[str, Any]:
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}. Copy or build the index again.") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise ValueError(f"{file} is of something else: expected an index made by `speechclip-plus index build`.")
    if not isinstance(facts.get("version"), int) or facts["version"] > VERSION:
        raise ValueError(
            f"{file} has format version {facts.get('version')}, this speechclip-plus reads up to {VERSION}: it was "
            "built by a newer one. Upgrade with `pip install -U speechclip-plus`, or build the index again."
        )
    if not facts.get("complete"):
        raise ValueError(
            f"The index {file.parent} is unfinished: give the command that began it again, and it goes on."
        )
    if missing := [name for name in _NEEDED if name not in facts]:
        raise ValueError(f"{file} does not say {', '.join(missing)}: it is damaged. Copy or build the index again.")
    return facts


__all__ = ["EmbeddingIndex"]
