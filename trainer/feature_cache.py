"""CLIP's embedding of every picture, computed once and kept on disk for all epochs and all runs.

The files never change once they are there: `ROOT/TOWER/PICTURES.npy` holds the embeddings `(I, P)`, float32, which is
read by memory mapping, and `PICTURES.json` beside it what pictures they are of. TOWER names the image tower's weights
and the image processor's settings, PICTURES the pictures' content, so that other weights, another processor or a
changed picture are simply other files.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
from torch.utils.data import Dataset

from ..modeling_speechclip_plus.modeling_speechclip_plus import is_frozen
from ..modeling_speechclip_plus.weight_fingerprint import hash_weights
from .batched_embedding import embed_pixels, picture_pixels


def default_cache_folder() -> Path:
    """The folder `speechclip_plus/image_embeddings` in the Hugging Face home (`HF_HOME`)."""
    return Path(huggingface_hub.constants.HF_HOME) / "speechclip_plus" / "image_embeddings"


class CachedImageEmbeddings(Dataset):
    """A data set's rows with `image_embeds` in place of `image`.

    Args:
        rows: a `datasets.Dataset` without the pictures.
        file: the embeddings `(I, P)`.
        places: for each row that of its picture in the file.
    """

    def __init__(self, rows: Any, file: Path, places: Sequence[int]) -> None:
        self.rows, self.file, self.places = rows, file, list(places)
        self._embeds: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._with_embedding(self.rows[index], index)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self._with_embedding(row, i) for row, i in zip(self.rows.__getitems__(indices), indices, strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_embeds": None}  # a worker process maps the file anew instead of copying it

    def _with_embedding(self, row: Mapping[str, Any], index: int) -> dict[str, Any]:
        if self._embeds is None:
            self._embeds = np.load(self.file, mmap_mode="r")
        return {**row, "image_embeds": np.array(self._embeds[self.places[index]])}


def cache_image_embeddings(
    model: Any, dataset: Any, processor: Any, folder: str | Path | None = None, batch_size: int = 64
) -> CachedImageEmbeddings:
    """Embed a data set's pictures, each once, or take what is kept of them.

    Pictures of which another data set's file has the embedding are taken from there. Several processes may do this at
    once: each writes a file of its own and moves it in place.

    Args:
        model: a `SpeechClipPlusModel` with a frozen CLIP.
        dataset: a `datasets.Dataset` with `image` and `image_id`; rows with one id show one picture.
        processor: the model's `SpeechClipPlusProcessor`.
        folder: root of the cache; default: `default_cache_folder()`.
        batch_size: pictures at a time.

    Raises:
        ValueError: if CLIP is trained, so that its embeddings change, or gives NaN for a picture.
    """
    if not is_frozen(model.clip):
        raise ValueError("The image embeddings of a CLIP that is trained change with every step: they cannot be kept.")
    images = dataset.select_columns(["image"])
    first_row: dict[int, int] = {}
    for row, image_id in enumerate(dataset["image_id"]):
        first_row.setdefault(image_id, row)
    rows = list(first_row.values())
    identities = [image_identity(images[row]["image"]) for row in rows]
    folder = (default_cache_folder() if folder is None else Path(folder)) / tower_identity(model, processor)
    file = folder / f"{_hash('/'.join(identities).encode())}.npy"
    if not file.is_file():
        _write(file, identities, model, processor, images, rows, batch_size)
    place = {image_id: number for number, image_id in enumerate(first_row)}
    return CachedImageEmbeddings(
        dataset.remove_columns("image"), file, [place[image_id] for image_id in dataset["image_id"]]
    )


def image_identity(image: Any) -> str:
    """Tell a picture from others: by its bytes, or by its file's path, size and time of change."""
    if isinstance(image, Mapping):
        if image.get("bytes") is not None:
            return _hash(image["bytes"])
        image = image.get("path")
    if isinstance(image, str | os.PathLike):
        status = os.stat(image)
        return _hash(f"{os.path.abspath(image)}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    pixels = np.asarray(image)
    return _hash(f"{pixels.shape} {pixels.dtype}\0".encode() + pixels.tobytes())


def tower_identity(model: Any, processor: Any) -> str:
    """Tell an image tower from others: by its weights, its configuration and the image processor's settings."""
    digest = hashlib.blake2b(digest_size=16)
    for prefix, part in (("vision_model", model.clip.vision_model), ("projection", model.clip.visual_projection)):
        hash_weights(digest, prefix, part)
    settings = {
        "tower": model.config.clip_config.vision_config.to_diff_dict(),
        "processor": processor.image_processor.to_dict(),
    }
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _write(
    file: Path, identities: list[str], model: Any, processor: Any, images: Any, rows: list[int], batch_size: int
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    known = _known(file.parent)
    width = model.config.clip_config.projection_dim
    with _moved_in_place(file) as unfinished:
        embeds = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float32, shape=(len(rows), width))
        missing = []
        for number, identity in enumerate(identities):
            if identity in known:
                source, place = known[identity]
                embeds[number] = source[place]
            else:
                missing.append(number)
        was_training = model.training
        model.eval()
        try:
            for start in range(0, len(missing), batch_size):
                numbers = missing[start : start + batch_size]
                embeds[numbers] = _embed(model, processor, images, [rows[number] for number in numbers])
        finally:
            model.train(was_training)
        embeds.flush()
        del embeds
        # The embeddings come last: where they are, all is there.
        with _moved_in_place(file.with_suffix(".json")) as index:
            index.write_text(json.dumps(identities), encoding="utf-8")


@contextmanager
def _moved_in_place(file: Path) -> Iterator[Path]:
    """Give a temporary name that no other process has; what is written there becomes `file` if all went well."""
    handle, name = tempfile.mkstemp(prefix=f".{file.name}-", suffix=".tmp", dir=file.parent)
    os.close(handle)
    unfinished = Path(name)
    try:
        yield unfinished
        with unfinished.open("rb") as stream:
            os.fsync(stream.fileno())
        unfinished.chmod(0o644)  # mkstemp makes files that only their owner can read
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def _embed(model: Any, processor: Any, images: Any, rows: list[int]) -> np.ndarray:
    pixels = [picture_pixels(processor, images[row]["image"], f"image of row {row}") for row in rows]
    embeds = embed_pixels(model, pixels)
    if not embeds.isfinite().all():
        wrong = [rows[number] for number in (~embeds.isfinite().all(dim=1)).nonzero().flatten().tolist()]
        raise ValueError(f"CLIP's image tower gives NaN or infinity for the pictures of the rows {wrong}.")
    return embeds.numpy()


def _known(folder: Path) -> dict[str, tuple[np.ndarray, int]]:
    """Embeddings that other files of this tower have: identity -> (file's embeddings, place in it)."""
    known: dict[str, tuple[np.ndarray, int]] = {}
    for index in sorted(folder.glob("*.json")):
        file = index.with_suffix(".npy")
        if file.is_file():
            embeds = np.load(file, mmap_mode="r")
            for place, identity in enumerate(json.loads(index.read_text(encoding="utf-8"))):
                known.setdefault(identity, (embeds, place))
    return known
