"""Feature cache on disk for what frozen encoders give: image embeddings, and hidden states of the speech encoder.

`FOLDER/TOWER/PACK/` holds `values.bin`, tensors one after the other, and `index.json`, which items they belong to and
where each begins. TOWER is a hash of the encoder's weights and settings and of the processor's, an item's key one of
its content, so that other weights, other settings or a changed file are simply computed anew. A pack never changes
once it is there; what another data set needs beyond it goes into a pack of its own.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import torch
from torch import Tensor

from ..atomic_files import finished_folder
from ..modeling_speechclip_plus.audio_utils import load_audio
from ..modeling_speechclip_plus.embedding import audio_batches, embed_images
from ..modeling_speechclip_plus.embedding_index import hash_weights
from ..modeling_speechclip_plus.image_utils import load_image
from ..modeling_speechclip_plus.modeling_speechclip_plus import is_frozen

CACHED_ROW = "cached_row"
"""Column of a cached data set by which a row finds its tensors."""

Place = tuple[str, int, tuple[int, ...]]  # file, first byte, shape


def cache_image_embeddings(
    model: Any, processor: Any, dataset: Any, folder: str | Path | None = None, batch_size: int = 64
) -> Any:
    """Replace a data set's images by their embeddings, each computed once for all epochs and runs.

    Of several processes let the first go ahead (`with args.main_process_first():`), or each embeds the images.

    Args:
        model: A `SpeechClipPlusModel` with a frozen CLIP, on the device that is to compute.
        processor: Its processor.
        dataset: A `datasets.Dataset` with `image` and `image_id`, without a transform.
        folder: Root of the cache; `speechclip_plus/features` in the Hugging Face home (`HF_HOME`) if not given.
        batch_size: Images at a time.

    Returns:
        The data set with `image_embeds`, `(P,)` float32, in place of `image`.
    """
    _check_no_format(dataset)
    root = Path(huggingface_hub.constants.HF_HOME, "speechclip_plus", "features") if folder is None else Path(folder)
    images = (_image_places(model, processor, dataset, root, batch_size), torch.float32)
    return _with_columns(dataset.remove_columns("image"), {"image_embeds": images})


def cache_features(
    model: Any,
    processor: Any,
    dataset: Any,
    folder: str | Path,
    batch_size: int = 16,
    dtype: torch.dtype = torch.float16,
    progress: Callable[[int], object] = lambda done: None,
) -> Any:
    """Replace a data set's recordings and images by what the frozen encoders give for them, computed once.

    Utterances are never cropped. Count on `2 * 50 * (layers + 1) * hidden_size` bytes for a second of speech. The
    speech encoder has to be frozen like CLIP, and padding to be `"invariant"`. Hidden states are stored in `dtype`;
    `progress` is called with the number of utterances of each batch. Else see `cache_image_embeddings`.

    Returns:
        The data set with `speech_hidden_states` `(L+1, T, D)` and `image_embeds` `(P,)` in place of `audio` and
        `image`, and their frames in `length`.
    """
    _check_no_format(dataset)
    if not is_frozen(model.speech_encoder) or model.config.padding != "invariant":
        raise ValueError(
            "Features can be computed beforehand only if the speech encoder is frozen and padding='invariant'; frozen "
            f"is {is_frozen(model.speech_encoder)}, padding is {model.config.padding!r}."
        )
    images = _image_places(model, processor, dataset, Path(folder), batch_size)
    settings = [model.config.speech_config.to_diff_dict(), processor.feature_extractor.to_dict(), str(dtype)]
    tower = Path(folder) / _tower_key({"speech_encoder": model.speech_encoder}, settings)
    audio = dataset.select_columns(["audio"])

    def hidden_states(rows: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        recordings = (audio[row]["audio"] for row in rows)
        for batch in audio_batches(model, processor, recordings, batch_size, name=_names("audio", rows)):
            hidden, lengths = model.encode_speech_frames(**batch.inputs)  # (B, L+1, T, D), (B,)
            for number, states, length in zip(batch.rows, hidden.to("cpu", dtype), lengths.tolist(), strict=True):
                yield rows[number], states[:, :length]
            progress(len(batch.rows))

    keys = {row: _item_key(audio[row]["audio"], load_audio) for row in range(len(dataset))}
    places = list(_cached(model, tower, keys, hidden_states, f"hidden states in {dtype}").values())
    cached = dataset.remove_columns(["audio", "image"])
    if "length" not in cached.column_names:
        cached = cached.add_column("length", [shape[1] for _, _, shape in places])
    return _with_columns(cached, {"speech_hidden_states": (places, dtype), "image_embeds": (images, torch.float32)})


class CachedColumns:
    """Transform for `datasets.Dataset` that adds columns of tensors, read when a row is asked for."""

    def __init__(self, columns: Mapping[str, tuple[Sequence[Place], torch.dtype]]) -> None:
        self.columns = columns  # by name, the place of each row's tensor and its dtype

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """Add the columns, if the batch says which rows it has."""
        if CACHED_ROW in batch:
            for name, (places, dtype) in self.columns.items():
                batch[name] = [_read(places[row], dtype) for row in batch[CACHED_ROW]]
        return batch

    def __deepcopy__(self, memo: dict) -> "CachedColumns":
        """Return itself, which never changes: `datasets` copies a transform whenever a format is set."""
        return self


def _with_columns(dataset: Any, columns: Mapping[str, tuple[Sequence[Place], torch.dtype]]) -> Any:
    numbered = dataset.add_column(CACHED_ROW, list(range(len(dataset))))
    return numbered.with_transform(CachedColumns(columns))


def _check_no_format(dataset: Any) -> None:
    if dataset.format["type"] is not None:
        raise ValueError(
            f"The data set has a format or transform ({dataset.format['type']}), on which a cache must not depend: "
            "take it off with dataset.with_format(None), or train without a cache."
        )


def _image_places(model: Any, processor: Any, dataset: Any, root: Path, batch_size: int) -> list[Place]:
    """Return for each row the place of its image's embedding."""
    if not is_frozen(model.clip):
        raise ValueError("The image embeddings of a CLIP that is trained change with every step: they cannot be kept.")
    settings = [model.config.clip_config.vision_config.to_diff_dict(), processor.image_processor.to_dict()]
    parts = {"vision_model": model.clip.vision_model, "projection": model.clip.visual_projection}
    tower = root / _tower_key(parts, settings)
    images, image_ids = dataset.select_columns(["image"]), list(dataset["image_id"])
    first_row: dict[int, int] = {}
    for row, image_id in enumerate(image_ids):
        first_row.setdefault(image_id, row)

    def embeddings(rows: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        missing = images.select(rows)["image"]
        embeds = embed_images(model, processor, missing, batch_size, name=_names("image", rows))
        yield from zip(rows, embeds, strict=True)

    def pixel_values(image: Any) -> Any:
        return processor(images=[load_image(image)], return_tensors="pt")["pixel_values"]

    keys = {row: _item_key(images[row]["image"], pixel_values) for row in first_row.values()}
    places = _cached(model, tower, keys, embeddings, "image embedding")
    return [places[first_row[image_id]] for image_id in image_ids]


@torch.no_grad()
def _cached(
    model: Any,
    tower: Path,
    keys: Mapping[int, str],
    compute: Callable[[Sequence[int]], Iterable[tuple[int, Tensor]]],
    what: str,
) -> dict[int, Place]:
    """Return the place of each row's tensor, after computing those whose keys no pack has."""
    known = _known(tower)
    missing = {key: row for row, key in keys.items() if key not in known}
    if missing:
        was_training = model.training
        model.eval()
        try:
            with finished_folder(tower / _hash("/".join(missing).encode())) as pack:
                _write(pack, keys, compute(list(missing.values())), what)
        finally:
            model.train(was_training)
        known = _known(tower)
    return {row: known[key] for row, key in keys.items()}


def _write(pack: Path, keys: Mapping[int, str], computed: Iterable[tuple[int, Tensor]], what: str) -> None:
    index: dict[str, list[int]] = {}
    with (pack / "values.bin").open("wb") as stream:
        for row, value in computed:
            if not value.isfinite().all():
                raise ValueError(f"The {what} of row {row} would hold NaN or infinity.")
            index[keys[row]] = [stream.tell(), *value.shape]
            stream.write(value.contiguous().view(torch.uint8).numpy().data)
    (pack / "index.json").write_text(json.dumps(index), encoding="utf-8")


def _known(tower: Path) -> dict[str, Place]:
    places: dict[str, Place] = {}
    for index in sorted(tower.glob("[!.]*/index.json")):
        for key, (start, *shape) in json.loads(index.read_text(encoding="utf-8")).items():
            places.setdefault(key, (str(index.with_name("values.bin")), start, tuple(shape)))
    return places


def _read(place: Place, dtype: torch.dtype) -> Tensor:
    # Read, not mapped: what was mapped and touched counts as memory of the process.
    file, start, shape = place
    count = int(np.prod(shape)) * dtype.itemsize
    return torch.from_numpy(np.fromfile(file, np.uint8, count, offset=start)).view(dtype).view(shape)


def _names(kind: str, rows: Sequence[int]) -> Callable[[int], str]:
    return lambda number: f"{kind} of row {rows[number]}"


def _item_key(item: Any, decode: Callable[[Any], Any]) -> str:
    """Hash an encoded file's bytes, or its path, size and time of change; of anything else what the encoder sees."""
    if isinstance(item, Mapping) and item.get("bytes") is not None:
        return _hash(item["bytes"])
    path = item.get("path") if isinstance(item, Mapping) and item.get("array") is None else item
    if isinstance(path, str | os.PathLike):
        status = os.stat(path)
        return _hash(f"{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    values = np.ascontiguousarray(decode(item))
    return _hash(f"{values.shape} {values.dtype}\0".encode() + values.tobytes())


def _tower_key(parts: Mapping[str, torch.nn.Module], settings: Sequence[Any]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for prefix, part in parts.items():
        hash_weights(digest, prefix, part)
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
