"""Copies of data sets: parquet files with the recordings and pictures inside, or a repository on the Hub."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import DatasetCardData, HfApi

from ...atomic_files import check_new_folder, finished_folder, write_text
from ...hub_cards.dataset_card import DatasetCardFacts, render_dataset_card
from ...hub_cards.model_card import CARD
from ...hub_cards.push import push_folder

_SHARD_BYTES = 500_000_000  # of recordings and pictures in one parquet file
_ROW_GROUP = 100  # rows: a reader holds one group in memory


def write_parquet(
    splits: dict[str, datasets.Dataset], output: Path, force: bool = False, facts: DatasetCardFacts | None = None
) -> list[str]:
    """Write data sets with their recordings and pictures inside, so that they load anywhere.

    Args:
        splits: data sets by split.
        output: a file that ends in .parquet, for one split, or a folder for files named after the splits.
        force: replace what is there.
        facts: of the folder's card, README.md; without them there is none.

    Returns:
        The names of the parquet files.

    Raises:
        ValueError: if `output` exists, or is a file and there are several splits.
    """
    check_output(list(splits), output, force)
    if output.suffix == ".parquet":
        with finished_file(output) as unfinished:
            _write_file(next(iter(splits.values())), unfinished)
        return [output.name]
    names = []
    with finished_folder(output) as work:
        for split, data in splits.items():
            shards = -(-sum(_size(row[name]) for row in data for name in ("audio", "image")) // _SHARD_BYTES) or 1
            for number in range(shards):
                names.append(f"{split}-{number:05d}-of-{shards:05d}.parquet")
                _write_file(data.shard(shards, number, contiguous=True), work / names[-1])
        if facts is not None:
            located = {split: f"{split}-*.parquet" for split in splits}
            info = _dataset_info(splits, {name: work / name for name in names})
            write_text(work / CARD, render_dataset_card(replace(facts, data_files=located, dataset_info=info)))
    return names


def push_dataset(splits: dict[str, datasets.Dataset], repo_id: str, facts: DatasetCardFacts) -> str:
    """Send data sets to the Hub in one commit, recordings and pictures inside; a new repository is private.

    Args:
        splits: data sets by split.
        repo_id: `owner/name`.
        facts: of the card; one that somebody has written or changed there stays.

    Returns:
        The repository's address.

    Raises:
        OSError: if the Hub refuses or does not answer.
    """
    # Where data sets have their room.
    place = Path(datasets.config.HF_DATASETS_CACHE)
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="push-", dir=place) as folder:
        write_parquet(splits, Path(folder) / "data", facts=replace(facts, repo_id=repo_id))
        private = None if HfApi().repo_exists(repo_id, repo_type="dataset") else True
        pushed = push_folder(
            Path(folder) / "data",
            repo_id,
            repo_type="dataset",
            private=private,
            commit_message="Upload dataset",
            delete_patterns=["*.parquet"],
        )
    return pushed.repo_url


def _dataset_info(splits: dict[str, datasets.Dataset], files: dict[str, Path]) -> dict[str, Any]:
    """Features and sizes as `datasets` writes them into a card."""
    import pyarrow.parquet
    from datasets.info import DatasetInfosDict

    sizes = dict.fromkeys(splits, 0)
    for name, file in files.items():
        content = pyarrow.parquet.read_metadata(file)
        split = next(split for split in splits if name.startswith(f"{split}-"))
        sizes[split] += sum(content.row_group(group).total_byte_size for group in range(content.num_row_groups))
    infos = {split: datasets.SplitInfo(split, sizes[split], len(data)) for split, data in splits.items()}
    info = datasets.DatasetInfo(
        features=next(iter(splits.values())).features,
        splits=datasets.SplitDict(infos),
        download_size=sum(file.stat().st_size for file in files.values()),
        dataset_size=sum(sizes.values()),
    )
    card = DatasetCardData()
    DatasetInfosDict({"default": info}).to_dataset_card_data(card)
    return card.to_dict()["dataset_info"]


def check_output(splits: list[str], output: Path, force: bool) -> None:
    """Check, before any work, that the copy may be written.

    Raises:
        ValueError: as `write_parquet`.
    """
    if output.suffix != ".parquet":
        check_new_folder(output, force)
    elif len(splits) > 1:
        raise ValueError(f"{output} is one file, for one split; name a folder for {', '.join(splits)}, or choose one.")
    elif output.exists() and not force:
        raise ValueError(f"{output} exists; name another file, or replace it with force=True (--force).")


@contextmanager
def finished_file(file: Path) -> Iterator[Path]:
    """Give a temporary name, which becomes `file` when all went well."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.tmp")
    try:
        yield unfinished
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def _size(item: dict[str, Any]) -> int:
    return len(item["bytes"]) if item.get("bytes") is not None else Path(item["path"]).stat().st_size


def _write_file(data: datasets.Dataset, file: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    schema = data.features.arrow_schema  # with the features in its metadata: they come back by themselves
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for start in range(0, len(data), _ROW_GROUP):
            rows = [_embedded(row) for row in data.select(range(start, min(start + _ROW_GROUP, len(data))))]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))


def _embedded(row: dict[str, Any]) -> dict[str, Any]:
    """Put the bytes of a row's files in place of their paths, of which the names stay."""
    inside = {}
    for name in ("audio", "image"):
        item = row[name]
        content = item["bytes"] if item.get("bytes") is not None else Path(item["path"]).read_bytes()
        inside[name] = {"bytes": content, "path": Path(item["path"]).name if item.get("path") else None}
    return {**row, **inside}
