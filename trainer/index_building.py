"""Building an embedding index of a folder or a data set, shard by shard and resumable."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from ..atomic_files import MANIFEST, check_new_folder, write_bytes, write_json
from ..modeling_speechclip_plus.audio_utils import SAMPLING_RATE
from ..modeling_speechclip_plus.embedding import audio_batches, image_batches
from ..modeling_speechclip_plus.embedding_index import (
    FACTS,
    FORMAT,
    VERSION,
    EmbeddingIndex,
    read_facts,
    same_weights,
    shard_file,
    weight_fingerprint,
)
from .data.folder import metadata_tables, read_table
from .data.load import DATASETS, is_data_path, is_hub_repository, read_dataset, splits_of
from .data.schema import AUDIO_SUFFIXES, IMAGE_SUFFIXES, SPLITS, Findings, NoSuchSplitError, some

logger = logging.getLogger(__name__)

SHARD_SIZE = 256
MAX_SECONDS = 120  # of one utterance: attention takes memory with the square of its length
_COLUMNS = {"images": "image", "audio": "audio"}
_SUFFIXES = {"images": IMAGE_SUFFIXES, "audio": AUDIO_SUFFIXES}
_TYPES = {"id": "string", "path": "string", "bytes": "large_binary", "text": "string", "seconds": "float64"}


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
    batch_size: int = 16,
    shard_size: int = SHARD_SIZE,
    on_error: str = "raise",
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **options: Any,
) -> EmbeddingIndex:
    """Embed images or audio and keep the result for `EmbeddingIndex.search`.

    Stopped at any moment, the same call goes on with the shards that are not there yet. The model is set to
    evaluation mode.

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
        force: Replace an index in `folder`, finished or not.
        progress: Called with (items done, all items) at the beginning and after every batch.
        **options: Of the data set, see `load_speech_image_dataset`.
    """
    folder = Path(folder).expanduser().absolute()
    splits = [split] if isinstance(split, str) else split
    findings = Findings(raises=on_error == "raise")
    collection = _open_collection(source, kind, splits, data_dir, findings, options)
    if collection.kind == "images" and branch is not None:
        raise ValueError(f"branch={branch!r} is for audio: CLIP alone embeds images.")
    if collection.kind == "audio":
        branch = branch or model.config.retrieval_branch
    total = len(collection.ids)
    shards = [range(total)[start : start + shard_size] for start in range(0, total, shard_size)]
    facts = _facts(collection, model, processor, branch) | {"shard_size": shard_size, "shards": len(shards)}
    _begin(folder, facts, force, (source, data_dir, model.name_or_path))
    model.eval()
    missing = {number: rows for number, rows in enumerate(shards) if not shard_file(folder, number).is_file()}
    done = total - sum(map(len, missing.values()))
    progress(done, total)
    for number, rows in missing.items():
        file, items = shard_file(folder, number), [collection[row] for row in rows]
        how = (model, processor, collection.kind, branch, batch_size, on_error == "skip")
        for count in _write_shard(file, items, *how):
            progress(done + count, total)
        done += len(rows)
    progress(done, total)
    return _finish(folder, facts, findings.broken, model.config.projection_dim)


@dataclass
class _Collection:
    """Images or utterances in a fixed order."""

    kind: str  # "images" or "audio"
    facts: dict[str, Any]  # where they came from, as plain values
    ids: Sequence[str]  # their names, each another one
    # For each a dictionary with its `image` or `audio` (`{"path": ..., "bytes": ...}`) and `text`, read when asked for
    rows: Sequence[dict[str, Any]] | datasets.Dataset

    def __getitem__(self, number: int) -> tuple[str, dict[str, Any], str | None]:
        """Id, source and text of an item."""
        row = self.rows[number]
        return self.ids[number], row[_COLUMNS[self.kind]], row["text"] or None


def _open_collection(
    source: str | Path,
    kind: str | None,
    splits: Sequence[str] | None,
    data_dir: str | Path | None,
    findings: Findings,
    options: dict[str, Any],
) -> _Collection:
    if kind is not None and kind not in _COLUMNS:
        raise ValueError(f"kind={kind!r}: choose {' or '.join(_COLUMNS)}.")
    path = Path(source).expanduser()
    if str(source) in DATASETS or is_hub_repository(str(source)):
        return _dataset_collection(str(source), kind or "images", splits, data_dir, findings, options)
    if not path.exists():
        raise FileNotFoundError(
            f"There is no folder {source}: give a folder of images or audio files, parquet files, owner/name of a "
            f"data set on the Hub, or one of {', '.join(sorted(DATASETS))}."
        )
    texts = _named_files(path)
    if not texts and (metadata_tables(path) or is_data_path(path)):
        return _dataset_collection(path, kind or "images", splits, data_dir, findings, options)
    if path.is_file():
        raise ValueError(f"{path} is a file; expected a folder, parquet files, or a data set.")
    if splits is not None or data_dir is not None or options:
        raise ValueError(f"{path} is a folder of files: splits, data_dir and options are for data sets.")
    return _folder_collection(path.absolute(), kind, texts, findings)


def _named_files(folder: Path) -> dict[Path, str | None]:
    """The files of an `imagefolder` or `audiofolder` of `datasets`, with the texts that its tables give them."""
    texts = {}
    for table in metadata_tables(folder):
        rows = list(read_table(table))
        for place, row in rows if "file_name" in rows[0][1] else []:
            if not row.get("file_name"):
                raise ValueError(f"{place} has no file_name.")
            texts[table.parent.absolute() / str(row["file_name"])] = row.get("text")
    return texts


def _folder_collection(
    folder: Path, kind: str | None, texts: dict[Path, str | None], findings: Findings
) -> _Collection:
    files = list(texts) or sorted(_walk_files(folder))
    suffixes = {file.suffix.lower() for file in files}
    kinds = [name for name in _COLUMNS if suffixes & set(_SUFFIXES[name]) and kind in (None, name)]
    if len(kinds) != 1:
        none = f"no {_COLUMNS[kind]} file" if kind else "no image and no audio file"
        both = "images and audio files: choose with kind (--kind)"
        raise ValueError(f"The folder {folder} holds {both if kinds else none}.")
    kind = kinds[0]
    rows: list[dict[str, Any]] = []
    ids = []
    for file in (file for file in files if file.suffix.lower() in _SUFFIXES[kind]):
        if os.fsencode(file).decode("utf-8", "replace") == str(file):
            rows.append({_COLUMNS[kind]: {"path": str(file), "bytes": None}, "text": texts.get(file)})
            ids.append(file.relative_to(folder).as_posix())
        elif findings.raises:
            raise ValueError(f"{os.fsencode(file)!r}: the name of this file is not UTF-8; rename it.")
        else:
            findings.broken.append(f"{os.fsencode(file)!r}: the name of this file is not UTF-8.")
    return _Collection(kind, {"folder": str(folder)}, ids, rows)


def _walk_files(folder: Path) -> Iterator[Path]:
    """Files of a folder and of the folders in it, linked ones too, without those that are hidden."""
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link back to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        yield from (Path(root, name) for name in names if not name.startswith("."))


def _dataset_collection(
    source: str | Path,
    kind: str,
    wanted: Sequence[str] | None,
    data_dir: str | Path | None,
    findings: Findings,
    options: dict[str, Any],
) -> _Collection:
    own = splits_of(source) if isinstance(source, Path) and not metadata_tables(source) else SPLITS
    splits: dict[str, datasets.Dataset] = {}
    absent = []
    for split in wanted or own:
        try:
            splits[split] = read_dataset(source, split, data_dir, findings, media=(_COLUMNS[kind],), **options)
        except NoSuchSplitError as error:
            if wanted is not None:
                raise
            absent.append(str(error))
    if not splits:
        raise NoSuchSplitError(f"{absent[0]} Name its own with split (--split).")
    facts = {
        "data": str(source.resolve()) if isinstance(source, Path) else source,
        "splits": list(splits),
        "data_dir": None if data_dir is None else str(Path(data_dir).expanduser().resolve()),
        "options": json.loads(json.dumps(options)),
    }
    places: dict[str, int] = {}
    start = 0
    for split, data in splits.items():
        prefix = f"{split}/" if len(splits) > 1 else ""  # ids of images are a split's own
        for row, name in enumerate(data["image_id" if kind == "images" else "caption_id"]):
            places.setdefault(f"{prefix}{name}", start + row)  # an image with its first caption
        start += len(data)
    rows = datasets.concatenate_datasets([data.select_columns([_COLUMNS[kind], "text"]) for data in splits.values()])
    return _Collection(kind, facts, list(places), rows.select(places.values()))


def _facts(collection: _Collection, model: Any, processor: Any, branch: str | None) -> dict[str, Any]:
    """What is built from what by whom: the beginning of `index.json`."""
    kind = collection.kind
    name = str(model.name_or_path or "")
    made_by = {"name": str(Path(name).resolve()) if name and Path(name).exists() else name}
    if commit := getattr(model.config, "_commit_hash", None):
        made_by["revision"] = commit
    part = processor.image_processor if kind == "images" else processor.feature_extractor
    settings = json.dumps(part.to_dict(), sort_keys=True, default=str)
    return {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "branch": branch,
        "model": {**made_by, "weights": weight_fingerprint(model, kind)},
        "processor": _digest(settings),
        "source": {**collection.facts, "items": len(collection.ids), "ids": _digest("\0".join(collection.ids))},
    }


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _begin(folder: Path, facts: dict[str, Any], force: bool, inputs: Sequence[str | Path | None]) -> None:
    """Make the folder, or check that what was begun there is the same index."""
    if (folder / FACTS).is_file() and not force:
        begun = read_facts(folder)
        if not begun.get("complete"):
            other = [name for name in facts if name != "model" and begun.get(name) != facts[name]]
            if not same_weights(begun["model"]["weights"], facts["model"]["weights"]):
                other.append("model")
            if other:
                raise ValueError(
                    f"An index was begun in {folder} with another {' and another '.join(other)}: give the command "
                    "that began it to go on, or begin anew with force=True (--force)."
                )
            return
    check_new_folder(folder, force, inputs)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shards = [shard_file(folder, number) for number in range(facts["shards"])]
    files = [FACTS, *(file.name for shard in shards for file in (shard, shard.with_suffix(".parquet")))]
    write_json(folder / MANIFEST, files + [f".{file}.tmp" for file in files])  # those of a process that was killed
    write_json(folder / FACTS, facts)


@torch.no_grad()
def _write_shard(
    file: Path,
    items: Sequence[tuple[str, dict[str, Any], str | None]],
    model: Any,
    processor: Any,
    kind: str,
    branch: str | None,
    batch_size: int,
    skip: bool,
) -> Iterator[int]:
    """Embed the items of a shard, yielding how many are done, and write it: the embeddings last."""
    embeds: dict[int, Tensor] = {}
    seconds: dict[int, float] = {}
    skipped: dict[int, str] = {}

    def name(place: int) -> str:
        return f"{_COLUMNS[kind]} {items[place][0]}"

    arguments = (model, processor, [source for _, source, _ in items], batch_size)
    on_error = (lambda place, error: skipped.update({place: str(error)})) if skip else None
    if kind == "images":
        batches, embed = image_batches(*arguments, name=name, on_error=on_error), model.get_image_features
    else:
        batches = audio_batches(*arguments, name=name, on_error=on_error, max_seconds=MAX_SECONDS)
        embed = partial(model.get_audio_features, branch=branch)
    for batch in batches:
        found = embed(**batch.inputs).pooler_output.float().cpu()  # (B, P)
        if wrong := (~found.isfinite().all(dim=1)).nonzero().flatten().tolist():
            raise ValueError(f"The model gives NaN or infinity for {name(batch.rows[wrong[0]])}.")
        embeds |= zip(batch.rows, found, strict=True)
        seconds |= {row: round(n / SAMPLING_RATE, 3) for row, n in zip(batch.rows, batch.lengths, strict=False)}
        yield len(embeds) + len(skipped)
    rows = []
    for place in sorted(embeds):
        id_, source, text = items[place]
        where = {"path": source["path"]} if source.get("bytes") is None else {"bytes": source["bytes"]}
        rows.append({"id": id_, **where, "text": text, "seconds": seconds.get(place)})
    table = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, pyarrow.schema(_TYPES.items())), table)
    write_bytes(file.with_suffix(".parquet"), table.getvalue())
    width = model.config.projection_dim
    matrix = torch.stack([embeds[place] for place in sorted(embeds)]) if embeds else torch.empty(0, width)
    reasons = json.dumps([skipped[place] for place in sorted(skipped)])
    write_bytes(file, safetensors.torch.save({"embeddings": matrix}, {"skipped": reasons}))


def _finish(folder: Path, facts: dict[str, Any], left_out: Sequence[str], width: int) -> EmbeddingIndex:
    skipped, rows = list(left_out), 0
    for number in range(facts["shards"]):
        with safe_open(shard_file(folder, number), framework="pt") as shard:
            skipped += json.loads(shard.metadata()["skipped"])
            rows += shard.get_slice("embeddings").get_shape()[0]
    if not rows:
        shutil.rmtree(folder)
        raise ValueError(f"None of the {facts['source']['items']} items can be used: {some(skipped, ' | ', 5)}")
    if skipped:
        logger.warning("%s: left out: %d (%s)", folder, len(skipped), some(skipped, " | ", 5))
    write_json(folder / FACTS, {**facts, "complete": True, "shape": [rows, width], "skipped": skipped})
    return EmbeddingIndex.load(folder)
