"""``speechclip-plus data check``: what a data set holds, what is broken in it, and a copy of it as parquet."""

from __future__ import annotations

import argparse
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from speechclip_plus.conversion.clip_tokenizer import openai_tokenizer
from speechclip_plus.hub_cards.dataset_card import DatasetCardFacts
from speechclip_plus.hub_cards.model_card import SplitSize
from speechclip_plus.modeling_speechclip_plus.audio_utils import MIN_SAMPLES, SAMPLING_RATE
from speechclip_plus.trainer.data.export import check_output, finished_file, push_dataset, write_parquet
from speechclip_plus.trainer.data.load import DATASETS, read_dataset
from speechclip_plus.trainer.data.schema import Findings, NoSuchSplitError
from speechclip_plus.trainer.data_facts import given_name, spoken_languages
from speechclip_plus.trainer.spoken_scenes.scenes import SPLITS

from .console import data_options

_SHOWN = 20


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
    check.add_argument("--license", metavar="ID", help="the copy's licence as the Hub calls it, such as cc-by-4.0")
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
    facts = _card_facts(args, options, splits, reports, broken)
    if args.write:
        names = write_parquet(splits, args.write, args.force, replace(facts, repo_id=args.write.name))
        print(f"{args.write}: {len(names)} parquet file{'s' if len(names) > 1 else ''}")
    if args.push:
        print(push_dataset(splits, args.push, facts))
        print("A new repository is private until you make it public, which the corpus's licence has to allow.")
    return 0


def _card_facts(
    args: argparse.Namespace,
    options: dict[str, Any],
    splits: dict[str, datasets.Dataset],
    reports: dict[str, SplitReport],
    broken: dict[str, int],
) -> DatasetCardFacts:
    name = given_name(args.name, args.data_dir)
    words = [
        "speechclip-plus data check",
        name,
        *(f"--option {option}" for option in args.option if "/" not in option),
    ]
    written = {split: sum(map(bool, data["text"])) for split, data in splits.items()}
    return DatasetCardFacts(
        name=args.push.split("/")[-1] if args.push else args.write.stem if args.write else name,
        source=name,
        splits={
            split: SplitSize(report.rows, report.pictures, report.speakers or None, report.hours)
            for split, report in reports.items()
        },
        written=written if any(written.values()) else {},
        languages=spoken_languages(name, next(iter(splits.values()))),
        made_by=" ".join([*words, *(["--on-error skip"] if args.on_error == "skip" else [])]),
        left_out=broken,
        license=args.license,
    )


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
        with finished_file(file) as unfinished, unfinished.open("wb") as stream:
            np.save(stream, counts)
        print(f"{file}: {len(counts):,} subword ids and counts, most frequent first")
