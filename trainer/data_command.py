"""``speechclip-plus data check``: what a data set holds, what is broken in it, and a copy of it as parquet."""

from __future__ import annotations

import argparse
import io
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..hub_cards.publishing import push_folder
from ..modeling_speechclip_plus.audio_loading import MIN_SAMPLES, SAMPLING_RATE
from ..modeling_speechclip_plus.conversion.openai_tokenizer import openai_tokenizer
from ..modeling_speechclip_plus.output_files import check_new_folder, finished_folder
from .corpora.common import Findings, NoSuchSplitError
from .data import DATASETS, read_dataset
from .evaluate_command import data_options
from .scenes import SPLITS

_SHOWN = 20
_SHARD_BYTES = 500_000_000  # of recordings and pictures in one parquet file
_ROW_GROUP = 100  # rows: a reader holds one group in memory


@dataclass(frozen=True)
class SplitReport:
    """What a split holds.

    Attributes:
        rows: Spoken captions.
        pictures: Different pictures.
        speakers: Different speakers; 0 if unknown.
        hours: Length of all recordings that can be opened.
        shortest: Seconds of the shortest recording.
        mean: Seconds on average.
        longest: Seconds of the longest recording.
        unreadable: Files that cannot be opened or are too short, each with the reason.
    """

    rows: int
    pictures: int
    speakers: int
    hours: float
    shortest: float
    mean: float
    longest: float
    unreadable: list[str]


def check_split_files(data: datasets.Dataset) -> SplitReport:
    """Open every recording and picture of a split, without decoding them."""
    unreadable: list[str] = []
    durations: list[float] = []
    pictures: set[int] = set()
    speakers: set[str] = set()
    for row in data:
        try:
            durations.append(_duration(row["audio"], f"audio of {row['caption_id']}"))
        except ValueError as error:
            unreadable.append(str(error))
        if row["image_id"] not in pictures:
            pictures.add(row["image_id"])
            try:
                _open_picture(row["image"], f"image of {row['caption_id']}")
            except ValueError as error:
                unreadable.append(str(error))
        speakers.add(row["speaker"])
    seconds = np.array(durations or [0.0])
    return SplitReport(
        rows=len(data),
        pictures=len(pictures),
        speakers=len(speakers - {"", None}),
        hours=float(seconds.sum()) / 3600,
        shortest=float(seconds.min()),
        mean=float(seconds.mean()),
        longest=float(seconds.max()),
        unreadable=unreadable,
    )


def _source(item: dict[str, Any]) -> Any:
    return io.BytesIO(item["bytes"]) if item.get("bytes") is not None else item["path"]


def _duration(audio: dict[str, Any], name: str) -> float:
    """Seconds of a recording by its header.

    Raises:
        ValueError: if it cannot be opened or is too short.
    """
    import soundfile

    try:
        info = soundfile.info(_source(audio))
    except (soundfile.LibsndfileError, OSError) as error:
        raise ValueError(f"{name} ({audio.get('path')}): cannot be read as audio ({error})") from error
    seconds = info.frames / info.samplerate
    if seconds * SAMPLING_RATE < MIN_SAMPLES:
        raise ValueError(f"{name} ({audio.get('path')}): too short, {1000 * seconds:.1f} ms")
    return seconds


def _open_picture(image: dict[str, Any], name: str) -> None:
    from PIL import Image

    try:
        with Image.open(_source(image)):
            pass
    except Exception as error:  # on damaged files PIL raises anything from OSError to struct.error
        raise ValueError(f"{name} ({image.get('path')}): cannot be read as an image ({error})") from error


def count_subwords(captions: Iterable[str]) -> tuple[np.ndarray, int]:
    """Count CLIP's subwords in captions, as the original did to choose its vocabulary.

    Each caption, without its final full stop, stands in CLIP's 77 places: start, subwords, end and padding (id 0).

    Returns:
        counts: int64, (V, 2): subword ids that occur and how often, most frequent first, of equal ones the smaller id.
        truncated: captions that are longer.
    """
    tokenizer = openai_tokenizer()
    places = tokenizer.model_max_length
    counts: Counter[int] = Counter()
    truncated = 0
    texts = Counter(_without_full_stop(caption) for caption in captions)
    for text, times in texts.items():
        ids = tokenizer(text, verbose=False)["input_ids"]
        truncated += times * (len(ids) > places)
        ids = ids if len(ids) <= places else [*ids[: places - 1], ids[-1]]
        for subword in ids:
            counts[subword] += times
        counts[0] += times * (places - len(ids))
    ordered = sorted(((i, n) for i, n in counts.items() if n), key=lambda pair: (-pair[1], pair[0]))
    return np.array(ordered, dtype=np.int64).reshape(-1, 2), truncated


def _without_full_stop(caption: str) -> str:
    return caption.strip().removesuffix(".").strip()


def write_parquet(splits: dict[str, datasets.Dataset], output: Path, force: bool = False) -> list[str]:
    """Write data sets with their recordings and pictures inside, so that they load anywhere.

    Args:
        splits: data sets by split.
        output: a file that ends in .parquet, for one split, or a folder for files named after the splits.
        force: replace what is there.

    Returns:
        The names of the files.

    Raises:
        ValueError: if `output` exists, or is a file and there are several splits.
    """
    check_output(list(splits), output, force)
    if output.suffix == ".parquet":
        with _finished_file(output) as unfinished:
            _write_file(next(iter(splits.values())), unfinished)
        return [output.name]
    names = []
    with finished_folder(output) as work:
        for split, data in splits.items():
            shards = -(-sum(_size(row[name]) for row in data for name in ("audio", "image")) // _SHARD_BYTES) or 1
            for number in range(shards):
                names.append(f"{split}-{number:05d}-of-{shards:05d}.parquet")
                _write_file(data.shard(shards, number, contiguous=True), work / names[-1])
    return names


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
def _finished_file(file: Path) -> Iterator[Path]:
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser("check", help="count, look for missing and broken files, and write a copy")
    check.add_argument(
        "name",
        metavar="NAME",
        help=f"{', '.join(sorted(DATASETS))}; a folder or parquet files; or owner/name on the Hub",
    )
    check.add_argument("--data-dir", type=Path, metavar="DIR", help="where the corpus lies")
    check.add_argument("--split", action="append", metavar="SPLIT", help="split to check; by default all there are")
    check.add_argument(
        "--on-error",
        choices=["raise", "skip"],
        default="raise",
        help="raise: open all files and fail if one is broken; skip: read all files and leave the broken ones out",
    )
    check.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help='option of the data set, such as languages=fr,nl or \'columns={"audio": "sound"}\'',
    )
    check.add_argument(
        "--vocabulary", type=Path, metavar="FILE.npy", help="write the captions' subword ids and counts"
    )
    check.add_argument("--write", type=Path, metavar="PATH", help="write a parquet copy: a folder, or FILE.parquet")
    check.add_argument("--push", metavar="OWNER/NAME", help="push it to the Hub, as a private repository")
    check.add_argument("--force", action="store_true", help="replace PATH if it exists")


def run(args: argparse.Namespace) -> int:
    """Check a data set; returns 1 if files are broken that were not to be skipped."""
    options = data_options(args.option)
    wanted = args.split or list(SPLITS)
    if args.write:
        check_output([] if args.split is None else wanted, args.write, args.force)
    splits: dict[str, datasets.Dataset] = {}
    findings: dict[str, Findings] = {}
    for split in wanted:
        found = Findings(raises=False)
        try:
            splits[split] = read_dataset(
                args.name, split, args.data_dir, found, read_all=args.on_error == "skip", **options
            )
        except NoSuchSplitError as error:
            if args.split:
                raise
            print(f"{split}: not there. {error}")
            continue
        findings[split] = found
    if not splits:
        raise ValueError(f"{args.name} has none of the splits {', '.join(wanted)}: name its own with --split.")
    reports = {split: check_split_files(data) for split, data in splits.items()}
    for split, report in reports.items():
        findings[split].broken.extend(report.unreadable)
    broken = {split: len(found.broken) for split, found in findings.items()}
    print(_table(reports, broken))
    lines: dict[str, list[str]] = {}  # what holds for the corpus as a whole is said once
    for split, found in findings.items():
        for line in found.lines(_SHOWN):
            lines.setdefault(line, []).append(split)
    for line, where in lines.items():
        print(f"{', '.join(where)}: {line}")
    _report_vocabulary(splits, args.vocabulary)
    if any(broken.values()) and args.on_error == "raise":
        print("Nothing is written while files are broken: mend them, or leave them out with --on-error skip.")
        return 1
    if args.write:
        names = write_parquet(splits, args.write, args.force)
        print(f"{args.write}: {len(names)} parquet file{'s' if len(names) > 1 else ''}")
    if args.push:
        print(push_dataset(splits, args.push))
        print("A new repository is private until you make it public, which the corpus's licence has to allow.")
    return 0


def push_dataset(splits: dict[str, datasets.Dataset], repo_id: str) -> str:
    """Send data sets to the Hub in one commit, recordings and pictures inside; a new repository is private.

    Args:
        splits: data sets by split.
        repo_id: `owner/name`.

    Returns:
        The repository's address.

    Raises:
        OSError: if the Hub refuses or does not answer.
    """
    from huggingface_hub import HfApi

    # Where data sets have their room.
    place = Path(datasets.config.HF_DATASETS_CACHE)
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="push-", dir=place) as folder:
        write_parquet(splits, Path(folder) / "data")
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


def _table(reports: dict[str, SplitReport], broken: dict[str, int]) -> str:
    heads = ["split", "rows", "pictures", "speakers", "hours", "shortest", "mean", "longest", "broken"]
    lines = [heads]
    for split, report in reports.items():
        seconds = [f"{value:.2f} s" for value in (report.shortest, report.mean, report.longest)]
        counts = [f"{value:,}" for value in (report.rows, report.pictures, report.speakers)]
        lines.append([split, *counts, f"{report.hours:.2f}", *seconds, f"{broken[split]:,}"])
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _report_vocabulary(splits: dict[str, datasets.Dataset], file: Path | None) -> None:
    captions = [text for data in splits.values() for text in data["text"] if text]
    if not captions:
        if file is not None:
            raise ValueError(f"There are no written captions, so no vocabulary for {file}.")
        print("captions: none written")
        return
    counts, truncated = count_subwords(captions)
    tokenizer = openai_tokenizer()
    special = {0, tokenizer.bos_token_id, tokenizer.eos_token_id}
    shown = []
    for subword, times in [pair for pair in counts.tolist() if pair[0] not in special][:_SHOWN]:
        text = tokenizer.decode([subword]).strip()
        # In other scripts a subword may be a part of a letter, which cannot be shown.
        shown.append(f"{f'id {subword}' if '�' in text else text} {times:,}")
    print(
        f"captions: {len(captions):,} of {len(set(captions)):,} wordings, {len(counts):,} of CLIP's subword ids "
        f"(padding, start and end among them); most frequent: {', '.join(shown)}"
    )
    if truncated:
        print(f"captions: {truncated:,} are longer than CLIP's {tokenizer.model_max_length} places and are cut")
    if file is not None:
        with _finished_file(file) as unfinished, unfinished.open("wb") as stream:
            np.save(stream, counts)
        print(f"{file}: {len(counts):,} subword ids and counts, most frequent first")
