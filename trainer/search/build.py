"""Building an embedding index, shard by shard: resumable, and by several processes at once."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from torch import Tensor

from ...atomic_files import MANIFEST, check_new_folder, write_bytes, write_json
from ...modeling_speechclip_plus.audio_utils import SAMPLING_RATE
from ...modeling_speechclip_plus.embedding import Batch, audio_batches, image_batches
from ...modeling_speechclip_plus.embedding_index import FACTS, FORMAT, VERSION, EmbeddingIndex, read_facts, shard_file
from ...modeling_speechclip_plus.weight_fingerprint import same_weights, weight_fingerprint
from ..data.schema import some
from .collection import COLUMNS, Collection, open_collection

logger = logging.getLogger(__name__)

BATCH_SIZE = 16
SHARD_SIZE = 256
MAX_SECONDS = 120  # of one utterance: attention takes memory with the square of its length
_COLUMN_TYPES = [
    ("id", "string"),
    ("path", "string"),
    ("bytes", "large_binary"),
    ("text", "string"),
    ("seconds", "float64"),
]
_ROW_GROUP = 16  # rows of a parquet file that are read together to get the bytes of one


def build_index(
    source: str | Path,
    folder: str | Path,
    model: Any,
    processor: Any,
    *,
    kind: str | None = None,
    split: str | Sequence[str] | None = None,
    data_dir: str | Path | None = None,
    branch: str | None = None,
    batch_size: int = BATCH_SIZE,
    shard_size: int = SHARD_SIZE,
    on_error: str = "raise",
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> EmbeddingIndex:
    """Embed images or audio and keep the result for `EmbeddingIndex.search`.

    Stopped at any moment, the same call goes on with the shards that are not there yet. Several processes that make
    the same call share the shards among them.

    Args:
        source: A folder of images or audio files, with all folders in it, or one whose `metadata.csv`, `.jsonl` or
            `.parquet` names them by `file_name`; a data set by its name, path or repository on the Hub (see
            `load_speech_image_dataset`); parquet files or a saved data set with a column `audio` or `image`.
        folder: The index.
        model: A `SpeechClipPlusModel`.
        processor: Its processor.
        kind: `"images"` or `"audio"`; by default what the folder holds, and the images of a data set.
        split: Of a data set, one or several; by default all there are.
        data_dir: Where a data set's files are.
        branch: The branch that embeds audio; the configured `retrieval_branch` by default.
        batch_size: Images or utterances embedded together.
        shard_size: Images or utterances that are written together: what is lost when the process is killed.
        on_error: `"raise"`: a broken or missing file is an error that names it. `"skip"`: it is left out, and listed
            in the log and in `index.json`.
        force: Replace the index if it exists, or if another one was begun in `folder`.
        progress: Called with (items done, all items) at the beginning and after every batch.
        **options: Of the data set, see `load_speech_image_dataset`.

    Returns:
        The index.

    Raises:
        ValueError: If the source, an item or an argument cannot be used; if `folder` holds something else.
        FileNotFoundError: If the source, or a file that it names, is not there.
    """
    folder = Path(folder).expanduser().absolute()
    collection = open_collection(
        source, kind, [split] if isinstance(split, str) else split, data_dir, on_error, **options
    )
    if collection.kind == "images" and branch is not None:
        raise ValueError(f"branch={branch!r} is for audio: CLIP alone embeds images.")
    builder = _Builder(collection, model, processor, branch, batch_size, on_error == "skip")
    facts = builder.facts(shard_size)
    _begin(folder, facts, force, (source, data_dir, model.name_or_path))
    was_training = model.training
    model.eval()
    try:
        _build_shards(folder, builder, shard_size, facts["shards"], progress or (lambda done, total: None))
    finally:
        model.train(was_training)
    return _finish(folder, facts, collection)


def _begin(folder: Path, facts: dict[str, Any], force: bool, inputs: Sequence[str | Path | None]) -> None:
    """Make the folder, or check that what was begun there is the same index."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        begun: dict[str, Any] = {"complete": True}
        if (folder / FACTS).is_file():
            try:
                begun = read_facts(folder)
            except ValueError:
                if not force:
                    raise
        if not begun.get("complete"):
            other = [name for name in facts if not _same(name, begun.get(name), facts[name])]
            if not other:
                return
            if not force:
                raise ValueError(
                    f"An index was begun in {folder} with another {' and another '.join(other)}: give the command "
                    "that began it to go on, or begin anew with force=True (--force)."
                )
        check_new_folder(folder, force, inputs)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        names = [shard_file(folder, number).stem for number in range(facts["shards"])]
        files = [FACTS, *(f"{name}{suffix}" for name in names for suffix in (".safetensors", ".parquet", ".lock"))]
        write_json(folder / MANIFEST, files + [f".{file}.tmp" for file in files])  # those of a process that was killed
        write_json(folder / FACTS, facts)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes that build the same index out of a step; a process that is killed keeps nobody out."""
    file = folder.with_name(f".{folder.name}.lock")
    with FileLock(file):
        try:
            yield
        finally:
            with suppress(OSError):  # Windows keeps a file that is open
                file.unlink()


def _same(name: str, begun: Any, wanted: Any) -> bool:
    if name == "model" and begun:  # whatever name it was loaded by
        return same_weights(begun["weights"], wanted["weights"])
    return begun == wanted


def _build_shards(
    folder: Path, builder: "_Builder", shard_size: int, shards: int, progress: Callable[[int, int], None]
) -> None:
    total = len(builder.collection)
    rows = [range(total)[number * shard_size :][:shard_size] for number in range(shards)]

    def report(done: int = 0) -> None:
        progress(done + sum(len(rows[n]) for n in range(shards) if shard_file(folder, n).is_file()), total)

    report()
    for timeout in (0, -1):  # first the shards that no other process is at, then those whose process was killed
        for number in range(shards):
            if shard_file(folder, number).is_file():
                continue
            with suppress(Timeout), FileLock(folder / f"shard-{number:05d}.lock", timeout=timeout):
                if not shard_file(folder, number).is_file():
                    builder.write(folder, number, rows[number], report)
    report()


def _finish(folder: Path, facts: dict[str, Any], collection: Collection) -> EmbeddingIndex:
    skipped, rows = list(collection.missing), 0
    for number in range(facts["shards"]):
        with safe_open(shard_file(folder, number), framework="pt") as shard:
            skipped += json.loads(shard.metadata()["skipped"])
            count, width = shard.get_slice("embeddings").get_shape()
        rows += count
    if not rows:
        shutil.rmtree(folder)
        raise ValueError(f"None of the {len(collection)} items can be used: {some(skipped, ' | ', 5)}")
    if skipped:
        logger.warning("%s: left out: %d (%s)", folder, len(skipped), some(skipped, " | ", 5))
    with _alone(folder):
        for lock in folder.glob("*.lock"):
            lock.unlink(missing_ok=True)
        write_json(folder / FACTS, {**facts, "complete": True, "shape": [rows, width], "skipped": skipped})
    return EmbeddingIndex.load(folder)


class _Builder:
    """What embeds the items of a shard and writes it."""

    def __init__(
        self, collection: Collection, model: Any, processor: Any, branch: str | None, batch_size: int, skip: bool
    ) -> None:
        self.collection, self.model, self.processor = collection, model, processor
        self.batch_size, self.skip = batch_size, skip
        self.branch = (branch or model.config.retrieval_branch) if collection.kind == "audio" else None

    def facts(self, shard_size: int) -> dict[str, Any]:
        """What is built from what by whom: the beginning of `index.json`."""
        kind = self.collection.kind
        name = str(self.model.name_or_path or "")
        model = {"name": str(Path(name).resolve()) if name and Path(name).exists() else name}
        if commit := getattr(self.model.config, "_commit_hash", None):
            model["revision"] = commit
        part = self.processor.image_processor if kind == "images" else self.processor.feature_extractor
        settings = json.dumps(part.to_dict(), sort_keys=True, default=str).encode()
        return {
            "format": FORMAT,
            "version": VERSION,
            "kind": kind,
            "branch": self.branch,
            "model": {**model, "weights": weight_fingerprint(self.model, kind)},
            "processor": hashlib.blake2b(settings, digest_size=16).hexdigest(),
            "source": self.collection.identity(),
            "shard_size": shard_size,
            "shards": -(-len(self.collection) // shard_size),
        }

    def write(self, folder: Path, number: int, rows: range, report: Callable[[int], None]) -> None:
        """Embed the items of a shard and write it; the embeddings come last and say that it is there."""
        import pyarrow.parquet

        items = [self.collection[row] for row in rows]
        embeds: dict[int, Tensor] = {}
        seconds: dict[int, float] = {}
        skipped: dict[int, str] = {}
        for batch, embeddings in self._embedded(items, skipped):
            embeds.update(zip(batch.rows, embeddings, strict=True))
            if batch.lengths:
                seconds.update(zip(batch.rows, (round(n / SAMPLING_RATE, 3) for n in batch.lengths), strict=True))
            report(len(embeds) + len(skipped))
        kept = [
            {
                "id": name,
                "path": None if source.get("bytes") is not None else source["path"],
                "bytes": source.get("bytes"),
                "text": text or None,
                "seconds": seconds.get(place),
            }
            for place, (name, source, text) in enumerate(items)
            if place in embeds
        ]
        content = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(kept, pyarrow.schema(_COLUMN_TYPES)), content, row_group_size=_ROW_GROUP
        )
        file = shard_file(folder, number)
        write_bytes(file.with_suffix(".parquet"), content.getvalue())
        width = self.model.config.projection_dim
        matrix = torch.stack([embeds[place] for place in sorted(embeds)]) if embeds else torch.empty(0, width)
        reasons = json.dumps([skipped[place] for place in sorted(skipped)])
        write_bytes(file, safetensors.torch.save({"embeddings": matrix}, {"skipped": reasons}))

    @torch.no_grad()
    def _embedded(
        self, items: Sequence[tuple[str, dict[str, Any], str]], skipped: dict[int, str]
    ) -> Iterator[tuple[Batch, Tensor]]:
        """Yield batches of items, rows counted within the shard, with their embeddings `(B, P)`."""

        def name(place: int) -> str:
            return f"{COLUMNS[self.collection.kind]} {items[place][0]}"

        arguments = (self.model, self.processor, [source for _, source, _ in items], self.batch_size)
        skip = (lambda place, error: skipped.update({place: str(error)})) if self.skip else None
        if self.collection.kind == "images":
            batches, embed = image_batches(*arguments, name=name, on_error=skip), self.model.get_image_features
        else:
            batches = audio_batches(*arguments, name=name, on_error=skip, max_seconds=MAX_SECONDS)
            embed = partial(self.model.get_audio_features, branch=self.branch)
        for batch in batches:
            embeds = embed(**batch.inputs).pooler_output
            if wrong := (~embeds.isfinite().all(dim=1)).nonzero().flatten().tolist():
                raise ValueError(f"The model gives NaN or infinity for {name(batch.rows[wrong[0]])}.")
            yield batch, embeds.float().cpu()
