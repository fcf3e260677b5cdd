"""Embedding index: the embeddings of many images or utterances on disk, searched exactly.

An index is a folder of

- `index.json`: what was embedded by which model; `complete` when all shards are there;
- `shard-00000.safetensors`: `embeddings`, `(n, P)` float32 of unit length, read by memory mapping;
- `shard-00000.parquet`: a row for each embedding with `id`, `path`, `bytes`, `text` and `seconds`.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

FORMAT = "speechclip-plus-index"
VERSION = 2
FACTS = "index.json"
# Rows and queries that are compared at a time: what fits in a cache is several times as fast.
_BLOCK_ROWS = 2048
_QUERIES = 256
_IMAGE_TOWER = ("clip.vision_model.", "clip.visual_projection.")
# These have no part in an embedding; `masked_spec_embed` is even drawn anew where a backbone comes without it.
_UNUSED = ("masked_spec_embed", "num_batches_tracked", "logit_scale")


class EmbeddingIndex:
    """Embeddings of images or utterances, made by `build_index` or `speechclip-plus index build`.

    `index[row]` says what a row is of: a dictionary with `id`; `path`, unless the file came as bytes; `text`, if it
    is known; and `seconds` of an utterance.

    Attributes:
        folder: The folder of the index.
        facts: Content of `index.json`: `kind`, `branch`, `model`, `source`, `skipped` and others.
        kind: `"images"` or `"audio"`.
        branch: The branch that embedded the utterances; `None` for images, which CLIP embeds.
        model: Which model embedded them: `name` (repository or folder), perhaps `revision`, and `weights`.

    Example:
    ```python
    index = EmbeddingIndex.load("my-index")
    scores, rows = index.search(model.get_audio_features(**speech).pooler_output, top_k=5)
    print(index[rows[0, 0]]["path"])
    ```
    """

    def __init__(self, folder: Path, facts: dict[str, Any], shards: Sequence[Tensor]) -> None:
        self.folder, self.facts = folder, facts
        self.kind: str = facts["kind"]
        self.branch: str | None = facts["branch"]
        self.model: dict[str, Any] = facts["model"]
        self._shards = shards
        self._starts = [0]  # the first row of each shard, and the number of all rows
        for shard in shards:
            self._starts.append(self._starts[-1] + len(shard))
        self._table = lru_cache(maxsize=8)(self._read_table)

    @classmethod
    def load(cls, folder: str | Path) -> "EmbeddingIndex":
        """Open an index; embeddings are read from disk when they are searched.

        Raises:
            FileNotFoundError: If there is no index, or a shard is missing.
            ValueError: If it is unfinished, of another format version, or damaged.
        """
        folder = Path(folder).expanduser()
        facts = read_facts(folder)
        if not facts.get("complete"):
            raise ValueError(f"The index {folder} is unfinished: give the command that began it again to go on.")
        try:
            files = [shard_file(folder, number) for number in range(facts["shards"])]
            index = cls(folder, facts, [_mapped(file) for file in files])
            if (shape := (len(index), index.width)) != tuple(facts["shape"]):
                raise ValueError(f"{FACTS} says {tuple(facts['shape'])}, the shards have {shape}")
        except (KeyError, ValueError, SafetensorError) as error:
            raise ValueError(f"The index {folder} is damaged: {error}. Copy or build it again.") from error
        if lost := [file.name for file in files if not file.with_suffix(".parquet").is_file()]:
            raise FileNotFoundError(f"The index {folder} lacks the table of its {lost[0]}. Copy or build it again.")
        return index

    @property
    def width(self) -> int:
        """P, the dimensions of an embedding."""
        return self._shards[0].shape[1]

    @property
    def embeddings(self) -> Tensor:
        """All embeddings, `(N, P)` float32, read into memory."""
        return torch.cat(list(self._shards))

    def __len__(self) -> int:
        return self._starts[-1]

    def __repr__(self) -> str:
        return f"EmbeddingIndex({str(self.folder)!r}: {len(self)} {self.kind} by {self.model['name']})"

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return EmbeddingIndex.load, (self.folder,)  # a worker process maps the files anew instead of copying them

    def __getitem__(self, row: int) -> dict[str, Any]:
        shard, place = self._place(row)
        item = self._table(shard)[place]
        return {name: value for name, value in item.items() if value is not None}

    def source(self, row: int) -> dict[str, Any]:
        """Return the image or utterance of a row as the processor takes it: `{"path": ..., "bytes": ...}`."""
        import pyarrow.dataset

        path = self[row].get("path")
        if path is not None:
            return {"path": path, "bytes": None}
        shard, place = self._place(row)
        table = pyarrow.dataset.dataset(shard_file(self.folder, shard).with_suffix(".parquet"))
        return {"path": None, "bytes": table.take([place], columns=["bytes"])["bytes"][0].as_py()}

    def check_model(self, model: Any) -> None:
        """Raise a `ValueError` if a model's embeddings may not be compared with those of the index.

        Images are embedded by CLIP alone, so that every model with the same CLIP fits an index of them, whatever its
        branches have learned since.
        """
        made_by = f"the index {self.folder} ({self.kind}, made by {self.model['name']})"
        name = f"the model {model.name_or_path or type(model).__name__}"
        way_out = "Search with the model that made it, or build an index with this one."
        if self.branch is not None and not getattr(model.config, f"has_{self.branch}"):
            raise ValueError(f"{name} has no {self.branch} branch, which embedded {made_by}. {way_out}")
        if not same_weights(weight_fingerprint(model, self.kind), self.model["weights"]):
            raise ValueError(f"{name} has other weights than those of {made_by}. {way_out}")

    def search(self, queries: Tensor, top_k: int = 5) -> tuple[Tensor, Tensor]:
        """Find the nearest rows of each query by dot product, exactly and in bounded memory.

        Products are summed in float64 and rounded to float32 once, so that equal embeddings have equal scores; of
        equal scores the lower row comes first.

        Args:
            queries: `(Q, P)` embeddings; of unit length for cosine similarities.
            top_k: How many rows to find.

        Returns:
            Scores, float32, best first, and rows, int64; both `(Q, min(top_k, N))`, on the CPU.
        """
        if queries.ndim != 2 or queries.shape[1] != self.width:
            raise ValueError(
                f"Queries must have the shape (Q, {self.width}), the width of the index {self.folder}; got "
                f"{tuple(queries.shape)}."
            )
        if top_k < 1:
            raise ValueError(f"top_k={top_k!r}: expected a whole number from 1.")
        queries = queries.detach().to("cpu", torch.float64)
        if wrong := (~queries.isfinite().all(dim=1)).nonzero().flatten().tolist():
            raise ValueError(f"The queries {wrong} hold NaN or infinity.")
        scores, rows = zip(*(self._search(part, top_k) for part in queries.split(_QUERIES)), strict=True)
        return torch.cat(scores), torch.cat(rows)

    def _search(self, queries: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        best, rows = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
        together = max(1, _BLOCK_ROWS // max(1, len(self._shards[0])))
        for first in range(0, len(self._shards), together):
            block = torch.cat(list(self._shards[first : first + together])).double()  # (C, P)
            scores = (queries @ block.T).float()  # (Q, C)
            # What is among the best of any query, with all that is equal to the last of them: topk is not stable.
            threshold = scores.topk(min(top_k, len(block)), dim=1).values[:, -1:]
            chosen = (scores >= threshold).any(dim=0).nonzero().flatten()
            best = torch.cat([best, scores[:, chosen]], dim=1)
            rows = torch.cat([rows, (self._starts[first] + chosen).expand(len(queries), -1)], dim=1)
            best, order = best.sort(dim=1, descending=True, stable=True)
            best, rows = best[:, :top_k], rows.gather(1, order[:, :top_k])
        return best, rows

    def _place(self, row: int) -> tuple[int, int]:
        """The shard of a row, and its place in it."""
        number = int(row) + len(self) * (row < 0)
        if not 0 <= number < len(self):
            raise IndexError(f"There is no row {int(row)}: the index has {len(self)}.")
        shard = bisect_right(self._starts, number) - 1
        return shard, number - self._starts[shard]

    def _read_table(self, shard: int) -> list[dict[str, Any]]:
        import pyarrow.parquet

        file = shard_file(self.folder, shard).with_suffix(".parquet")
        return pyarrow.parquet.read_table(file, columns=["id", "path", "text", "seconds"]).to_pylist()


def shard_file(folder: Path, number: int) -> Path:
    """The file of a shard's embeddings; its items lie beside it with the suffix `.parquet`."""
    return folder / f"shard-{number:05d}.safetensors"


def read_facts(folder: Path) -> dict[str, Any]:
    """Read `index.json` of an index, finished or not; what is no such file is a ValueError."""
    file = folder / FACTS
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}. Copy or build the index again.") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise ValueError(f"{file} is of something else: expected an index made by `speechclip-plus index build`.")
    if facts.get("version") != VERSION:
        raise ValueError(
            f"{file} has format version {facts.get('version')}, this speechclip-plus reads version {VERSION}: use the "
            "version that made it, or build the index again."
        )
    return facts


def _mapped(file: Path) -> Tensor:
    with safe_open(file, framework="pt") as shard:
        return shard.get_tensor("embeddings")


def weight_fingerprint(model: Any, kind: str) -> dict[str, str]:
    """Hash the weights that embed `"images"` (CLIP's image tower) or `"audio"` (all others).

    Digests are by precision. Those of a model in float32 are of its weights rounded to bfloat16 and to float16, so
    that it is recognised when loaded in either; see `same_weights`.
    """
    own = str(model.dtype).removeprefix("torch.")
    digests = {}
    for precision in ("bfloat16", "float16") if own == "float32" else (own,):
        digest = hashlib.blake2b(digest_size=16)
        for name, value in model.state_dict().items():
            if name.startswith(_IMAGE_TOWER) == (kind == "images"):
                _hash(digest, name, value, getattr(torch, precision))
        digests[precision] = digest.hexdigest()
    return digests


def same_weights(first: dict[str, str], second: dict[str, str]) -> bool:
    """Whether two fingerprints are of the same weights, in the precisions that both have."""
    shared = first.keys() & second.keys()
    return bool(shared) and all(first[precision] == second[precision] for precision in shared)


def hash_weights(digest: Any, prefix: str, part: nn.Module) -> None:
    """Feed the weights of a module to a hash of `hashlib`, under names that begin with `prefix`."""
    for name, value in part.state_dict().items():
        _hash(digest, f"{prefix}.{name}", value, value.dtype)


def _hash(digest: Any, name: str, value: Tensor, precision: torch.dtype) -> None:
    if name.endswith(_UNUSED):
        return
    value = value.detach().cpu()
    value = value.to(precision) if value.is_floating_point() else value
    digest.update(f"{name} {tuple(value.shape)} {value.dtype}\0".encode())
    digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)


__all__ = ["EmbeddingIndex"]
