"""Parquet copies of data sets, with the recordings and images inside, in a folder or on the Hub."""

import os
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
from datasets.info import DatasetInfosDict
from datasets.table import embed_table_storage
from huggingface_hub import DatasetCardData, HfApi

from ...atomic_files import check_new_folder, finished_folder, write_text
from ...hub_cards.cards import CARD, DatasetCardFacts, render_dataset_card
from ...hub_cards.push import push_folder

_SHARD_BYTES = 500_000_000  # of recordings and images in one parquet file
_ROW_GROUP = 100  # rows: a reader holds one group in memory


def write_parquet(
    splits: dict[str, datasets.Dataset],
    output: Path,
    force: bool = False,
    facts: DatasetCardFacts | None = None,
    inputs: Iterable[str | os.PathLike | None] = (),
) -> list[str]:
    """Write data sets with their recordings and images inside, so that they load anywhere.

    Args:
        splits: Data sets by split.
        output: A folder for parquet files named after the splits.
        force: Replace an earlier copy.
        facts: Facts for the folder's card, README.md; without them there is none.
        inputs: Files and folders that must not be replaced, because they are read.

    Returns:
        The names of the parquet files.

    Raises:
        ValueError: If `output` exists or may not be replaced.
    """
    check_new_folder(output, force, inputs)
    with finished_folder(output) as work:
        return _write_files(splits, work, facts)


def push_dataset(splits: dict[str, datasets.Dataset], repo_id: str, facts: DatasetCardFacts) -> str:
    """Send data sets to the Hub in one commit, recordings and images inside; a new repository is private.

    Args:
        splits: Data sets by split.
        repo_id: `owner/name`.
        facts: Facts for the card; one that somebody has written or changed there stays.

    Returns:
        The repository's address.

    Raises:
        OSError: If the Hub refuses or does not answer.
    """
    # The cache's disk: a corpus may not fit into the system's temporary folder.
    place = Path(datasets.config.HF_DATASETS_CACHE)
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="push-", dir=place) as folder:
        _write_files(splits, Path(folder), replace(facts, repo_id=repo_id))
        private = None if HfApi().repo_exists(repo_id, repo_type="dataset") else True
        pushed = push_folder(
            Path(folder),
            repo_id,
            repo_type="dataset",
            private=private,
            commit_message="Upload dataset",
            delete_patterns=["*.parquet"],
        )
    return pushed.repo_url


def _write_files(splits: dict[str, datasets.Dataset], folder: Path, facts: DatasetCardFacts | None) -> list[str]:
    names = []
    infos = {}
    for split, data in splits.items():
        shards = -(-sum(_size(row[name]) for row in data for name in ("audio", "image")) // _SHARD_BYTES) or 1
        files = [f"{split}-{number:05d}-of-{shards:05d}.parquet" for number in range(shards)]
        parts = [data.shard(shards, number, contiguous=True) for number in range(shards)]
        size = sum(_write_file(part, folder / file) for part, file in zip(parts, files, strict=True))
        infos[split] = datasets.SplitInfo(split, size, len(data))
        names += files
    if facts is not None:
        info = datasets.DatasetInfo(
            features=next(iter(splits.values())).features,
            splits=datasets.SplitDict(infos),
            download_size=sum((folder / name).stat().st_size for name in names),
            dataset_size=sum(info.num_bytes for info in infos.values()),
        )
        metadata = DatasetCardData()
        DatasetInfosDict({"default": info}).to_dataset_card_data(metadata)
        located = {split: f"{split}-*.parquet" for split in splits}
        facts = replace(facts, data_files=located, dataset_info=metadata.to_dict()["dataset_info"])
        write_text(folder / CARD, render_dataset_card(facts))
    return names


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
