"""Build an index of a gallery: embed every item once, in bounded memory, from wherever an earlier try was stopped."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...atomic_files import check_new_folder
from ...modeling_speechclip_plus.audio_utils import SAMPLING_RATE, load_audio
from ...modeling_speechclip_plus.embedding_index import EmbeddingIndex
from ...modeling_speechclip_plus.weight_fingerprint import weight_fingerprint
from ..batched_embedding import (
    BATCHES_SORTED_TOGETHER,
    batches_by_length,
    embed_pixels,
    picture_pixels,
    speech_inputs,
)
from ..data.schema import some
from ..memory import release_memory
from .gallery import Gallery, GalleryItem, open_gallery
from .index_writer import IndexWriter, only_builder

logger = logging.getLogger(__name__)

BATCH_SIZE = 16
MAX_SECONDS = 120  # of one recording: attention takes memory with the square of its length
_BATCH_SECONDS = 15  # of an utterance in a full batch: longer ones come in smaller batches


def build_index(
    gallery: str | Path,
    folder: str | Path,
    model: Any,
    processor: Any,
    *,
    kind: str | None = None,
    split: str | Sequence[str] | None = None,
    data_dir: str | Path | None = None,
    branch: str | None = None,
    batch_size: int = BATCH_SIZE,
    on_error: str = "raise",
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> EmbeddingIndex:
    """Embed pictures or recordings and keep the result for `EmbeddingIndex.search`.

    The index appears under its name when it is whole. Stopped at any moment, the same call goes on from the last
    batches that were done; the result is that of a call that was not stopped.

    Args:
        gallery: a folder of pictures or recordings; a data set by its name, path or repository on the Hub; parquet
            files (see `trainer.gallery.open_gallery`).
        folder: the index.
        model: a `SpeechClipPlusModel`.
        processor: its processor.
        kind: "images" or "recordings"; by default what the folder holds, and the pictures of a data set.
        split: of a data set, one or several; by default all there are.
        data_dir: where a data set's files are.
        branch: that embeds recordings; the configured `retrieval_branch` by default.
        batch_size: pictures, or recordings, at a time.
        on_error: "raise": a broken file is an error that names it; what was done until then is kept. "skip": it is
            left out, and listed in the log and in `index.json`.
        force: replace the folder if it exists, and what was begun of another index of that name.
        progress: called with (items done, all items) at the beginning and after every batch.
        **options: of the data set, see `load_speech_image_dataset`.

    Returns:
        The index.

    Raises:
        ValueError: for a gallery, an item or an argument that cannot be used; `folder` exists; or something else was
            begun there.
        FileNotFoundError: the gallery, or a file that it names, is not there.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r}: choose raise or skip.")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: at least 1 is needed.")
    folder = Path(folder).expanduser().resolve()
    check_new_folder(folder, force)
    splits = [split] if isinstance(split, str) else split
    items = open_gallery(gallery, kind, splits, data_dir, on_error, **options)
    if items.kind == "images" and branch is not None:
        raise ValueError(f"branch={branch!r} is for recordings: CLIP alone embeds pictures.")
    branch = (branch or model.config.retrieval_branch) if items.kind == "recordings" else None
    plan = {
        "kind": items.kind,
        "branch": branch,
        "model": _model_facts(model, items.kind, branch),
        "processor": _processor_identity(processor, items.kind),
        "gallery": items.identity(),
    }
    work = folder.with_name(f".{folder.name}.building")
    with only_builder(work):
        writer = IndexWriter(work, plan, model.config.clip_config.projection_dim, restart=force)
        was_training = model.training
        model.eval()
        try:
            _embed_rest(writer, items, model, processor, branch, batch_size, on_error == "skip", progress)
        finally:
            model.train(was_training)
        skipped = [*items.facts.get("missing", []), *writer.skipped]
        if not writer.rows:
            raise ValueError(f"None of the {len(items)} {items.kind} can be used: {some(skipped, ' | ', 5)}")
        if skipped:
            logger.warning("%s: left out: %d (%s)", gallery, len(skipped), some(skipped, " | ", 5))
        return writer.finish(folder)


def _embed_rest(
    writer: IndexWriter,
    items: Gallery,
    model: Any,
    processor: Any,
    branch: str | None,
    batch_size: int,
    skip: bool,
    progress: Callable[[int, int], None] | None,
) -> None:
    read = _read_pictures if items.kind == "images" else _read_recordings
    embed = _embed_pictures if items.kind == "images" else _embed_recordings
    while True:
        if progress is not None:
            progress(writer.done, len(items))
        if writer.done == len(items):
            return
        window = _Window(writer.done)
        read(window, items, processor, batch_size, skip)
        embeds = embed(model, processor, window.media, branch, batch_size) if window.items else np.empty((0, 1))
        if len(wrong := np.flatnonzero(~np.isfinite(embeds).all(axis=1))):
            raise ValueError(f"The model gives NaN or infinity for {window.items[wrong[0]]['id']}.")
        writer.append(embeds, window.items, window.contents, window.next, window.skipped)


class _Window:
    """Items that are read, embedded and written together."""

    def __init__(self, start: int) -> None:
        self.next = start
        self.items: list[dict[str, Any]] = []
        self.media: list[Any] = []
        self.contents: list[bytes | None] = []
        self.skipped: list[str] = []

    def read(self, items: Gallery, load: Callable[[GalleryItem], Any], skip: bool) -> None:
        """Read the next item, or skip it."""
        item = items[self.next]
        self.next += 1
        try:
            media = load(item)
        except (ValueError, TypeError, OSError) as error:
            if not skip:
                raise
            self.skipped.append(str(error))
            return
        content = item.source.get("bytes")
        facts = {"id": item.id}
        if content is None:
            facts["path"] = str(Path(item.source["path"]).absolute())
        if item.text:
            facts["text"] = item.text
        self.items.append(facts)
        self.media.append(media)
        self.contents.append(content)


def _read_pictures(window: _Window, items: Gallery, processor: Any, batch_size: int, skip: bool) -> None:
    def load(item: GalleryItem) -> torch.Tensor:
        return picture_pixels(processor, item.source, f"picture {item.id}")

    while window.next < len(items) and len(window.items) < batch_size:
        window.read(items, load, skip)


def _read_recordings(window: _Window, items: Gallery, processor: Any, batch_size: int, skip: bool) -> None:
    count = batch_size * BATCHES_SORTED_TOGETHER
    samples = 0
    while window.next < len(items) and len(window.items) < count and samples < _batch_samples(count):
        window.read(items, _load_recording, skip)
        samples = sum(map(len, window.media))
    for facts, waveform in zip(window.items, window.media, strict=True):
        facts["seconds"] = round(len(waveform) / SAMPLING_RATE, 3)


def _load_recording(item: GalleryItem) -> np.ndarray:
    waveform = load_audio(item.source, name=f"recording {item.id}")
    if len(waveform) > MAX_SECONDS * SAMPLING_RATE:
        raise ValueError(
            f"recording {item.id} is {len(waveform) / SAMPLING_RATE:.0f} s long, and one embedding can stand for at "
            f"most {MAX_SECONDS} s: cut it into utterances."
        )
    return waveform


def _batch_samples(batch_size: int) -> int:
    return batch_size * _BATCH_SECONDS * SAMPLING_RATE


def _embed_pictures(model: Any, processor: Any, media: list[Any], branch: str | None, batch_size: int) -> np.ndarray:
    return embed_pixels(model, media).numpy()


@torch.no_grad()
def _embed_recordings(model: Any, processor: Any, media: list[Any], branch: str | None, batch_size: int) -> np.ndarray:
    embeds = np.empty((len(media), model.config.clip_config.projection_dim), np.float32)
    for batch in batches_by_length(enumerate(media), batch_size, _batch_samples(batch_size)):
        found = model.get_audio_features(**speech_inputs(model, processor, batch), branch=branch).pooler_output
        embeds[[number for number, _ in batch]] = found.float().cpu().numpy()
    release_memory()
    return embeds


def _model_facts(model: Any, kind: str, branch: str | None) -> dict[str, Any]:
    name = str(model.name_or_path or "")
    facts: dict[str, Any] = {"name": str(Path(name).resolve()) if name and Path(name).exists() else name}
    if commit := getattr(model.config, "_commit_hash", None):
        facts["revision"] = commit
    return {**facts, "weights": weight_fingerprint(model, kind, branch)}


def _processor_identity(processor: Any, kind: str) -> str:
    part = processor.image_processor if kind == "images" else processor.feature_extractor
    return hashlib.blake2b(
        json.dumps(part.to_dict(), sort_keys=True, default=str).encode(), digest_size=16
    ).hexdigest()
