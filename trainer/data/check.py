"""Check of a data set, and its parquet copies with the recordings and images inside, in a folder or on the Hub."""

import io
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet
from datasets.info import DatasetInfosDict
from datasets.table import embed_table_storage
from huggingface_hub import DatasetCardData, HfApi
from PIL import Image

from ...atomic_files import check_new_folder, finished_folder, write_text
from ...hub_cards.cards import CARD, DatasetCardFacts, SplitSize, render_dataset_card
from ...hub_cards.push import push_folder
from ...modeling_speechclip_plus.audio_utils import MIN_SAMPLES, SAMPLING_RATE
from .load import read_dataset
from .schema import SPLITS, Findings, NoSuchSplitError, audio_seconds, readable_rows

_SHARD_BYTES = 500_000_000  # of recordings and images in one parquet file
_ROW_GROUP = 100  # rows: a reader holds one group in memory


@dataclass
class SplitReport:
    """Contents of a split, and what is missing or broken."""

    data: datasets.Dataset
    size: SplitSize  # hours of all recordings that can be opened
    durations: tuple[float, float, float]  # seconds of the shortest recording, on average, and of the longest
    findings: Findings


def check_dataset(
    name_or_path: str | Path,
    data_dir: str | Path | None = None,
    splits: Sequence[str] | None = None,
    on_error: str = "raise",
    **options: Any,
) -> tuple[dict[str, SplitReport], dict[str, str]]:
    """Load the splits of a data set, by default all there are, and open every file of them, without decoding.

    `on_error="skip"` decodes every file and leaves the rows out of which one is broken. Returns reports by split, and
    by split why one is not there; if it was asked for, that is an error instead.
    """
    reports, absent = {}, {}
    for split in splits or SPLITS:
        findings = Findings(raises=False)
        try:
            data = read_dataset(name_or_path, split, data_dir, findings, read_all=on_error == "skip", **options)
        except NoSuchSplitError as error:
            if splits:
                raise
            absent[split] = str(error)
        else:
            reports[split] = check_files(data, findings)
    if not reports:
        raise ValueError(f"{name_or_path} has none of the splits {', '.join(SPLITS)}: name its own with --split.")
    return reports, absent


def check_files(data: datasets.Dataset, findings: Findings) -> SplitReport:
    """Open every recording and image of a split, without decoding; what cannot be opened is added to `findings`."""
    durations: list[float] = []

    def open_audio(item: dict[str, Any], name: str) -> None:
        seconds = audio_seconds(item, name)
        if seconds * SAMPLING_RATE < MIN_SAMPLES:
            raise ValueError(f"{name} ({item.get('path')}): too short, {1000 * seconds:.1f} ms")
        durations.append(seconds)

    readable_rows(data, findings, open_audio, _open_image)
    lengths = np.array(durations or [0.0])
    speakers = set(data["speaker"]) - {""}
    return SplitReport(
        data=data,
        size=SplitSize(len(data), len(set(data["image_id"])), len(speakers) or None, float(lengths.sum()) / 3600),
        durations=(float(lengths.min()), float(lengths.mean()), float(lengths.max())),
        findings=findings,
    )


def _open_image(image: dict[str, Any], name: str) -> None:
    try:
        with Image.open(io.BytesIO(image["bytes"]) if image.get("bytes") is not None else image["path"]):
            pass
    except Exception as error:  # on damaged files PIL raises anything from OSError to struct.error
        raise ValueError(f"{name} ({image.get('path')}): cannot be read as an image ({error})") from error


def count_tokens(captions: Iterable[str], tokenizer: Any) -> tuple[np.ndarray, int]:
    """Count CLIP's tokens in captions, as the original did to choose its vocabulary.

    Each caption, without its final full stop, fills CLIP's 77 positions: start, tokens, end and padding (id 0).
    Returns the ids that occur and how often, int64 (V, 2), most frequent first, and how many captions are longer.
    """
    positions = tokenizer.model_max_length
    counts: Counter[int] = Counter()
    truncated = 0
    texts = Counter(caption.strip().removesuffix(".").strip() for caption in captions)
    for text, times in texts.items():
        ids = tokenizer(text, verbose=False)["input_ids"]
        truncated += times * (len(ids) > positions)
        ids = ids if len(ids) <= positions else [*ids[: positions - 1], ids[-1]]
        for token in ids:
            counts[token] += times
        counts[0] += times * (positions - len(ids))
    ordered = sorted((+counts).items(), key=lambda pair: (-pair[1], pair[0]))
    return np.array(ordered, dtype=np.int64).reshape(-1, 2), truncated


def write_parquet(
    splits: dict[str, datasets.Dataset],
    output: Path,
    force: bool = False,
    facts: DatasetCardFacts | None = None,
    inputs: Iterable[str | os.PathLike | None] = (),
) -> list[str]:
    """Write data sets with their recordings and images inside, so that they load anywhere.

    The folder `output` gets parquet files named after the splits, whose names are returned, and a card if there are
    `facts`; `force` and `inputs` are those of `check_new_folder`.
    """
    check_new_folder(output, force, inputs)
    with finished_folder(output) as work:
        return _write_files(splits, work, facts)


def push_dataset(splits: dict[str, datasets.Dataset], repo_id: str, facts: DatasetCardFacts) -> str:
    """Send data sets to the Hub in one commit, recordings and images inside; a new repository is private.

    A card that somebody has written or changed there stays. Returns the repository's address.
    """
    # The cache's disk: a corpus may not fit into the system's temporary folder.
    place = Path(datasets.config.HF_DATASETS_CACHE)
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="push-", dir=place) as folder:
        _write_files(splits, Path(folder), replace(facts, repo_id=repo_id))
        pushed = push_folder(
            Path(folder),
            repo_id,
            repo_type="dataset",
            private=None if HfApi().repo_exists(repo_id, repo_type="dataset") else True,
            commit_message="Upload dataset",
            delete_patterns=["*.parquet"],
        )
    return pushed.repo_url


def _write_files(splits: dict[str, datasets.Dataset], folder: Path, facts: DatasetCardFacts | None) -> list[str]:
    infos = datasets.SplitDict()
    for split, data in splits.items():
        shards = -(-sum(_size(row[name]) for row in data for name in ("audio", "image")) // _SHARD_BYTES) or 1
        size = 0
        for number in range(shards):
            part = data.shard(shards, number, contiguous=True)
            size += _write_file(part, folder / f"{split}-{number:05d}-of-{shards:05d}.parquet")
        infos.add(datasets.SplitInfo(split, size, len(data)))
    files = sorted(folder.glob("*.parquet"))
    if facts is not None:
        info = datasets.DatasetInfo(
            features=next(iter(splits.values())).features,
            splits=infos,
            download_size=sum(file.stat().st_size for file in files),
            dataset_size=sum(info.num_bytes for info in infos.values()),
        )
        metadata = DatasetCardData()
        DatasetInfosDict({"default": info}).to_dataset_card_data(metadata)
        located = {split: f"{split}-*.parquet" for split in splits}
        facts = replace(facts, data_files=located, dataset_info=metadata.to_dict()["dataset_info"])
        write_text(folder / CARD, render_dataset_card(facts))
    return [file.name for file in files]


def _size(item: dict[str, Any]) -> int:
    return len(item["bytes"]) if item["bytes"] is not None else Path(item["path"]).stat().st_size


def _write_file(data: datasets.Dataset, file: Path) -> int:
    # `Dataset.to_parquet` leaves out the files that the rows name; `push_to_hub` embeds them in this way.
    written = 0
    with pyarrow.parquet.ParquetWriter(file, data.features.arrow_schema) as writer:
        for table in data.with_format("arrow").iter(_ROW_GROUP):
            embedded = embed_table_storage(table)
            writer.write_table(embedded)
            written += embedded.nbytes
    return written
