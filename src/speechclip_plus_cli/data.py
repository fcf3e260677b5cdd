"""`speechclip-plus data check`: contents of a data set, what is broken in it, and a copy of it as parquet."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from speechclip_plus.hub_cards.cards import DatasetCardFacts
    from speechclip_plus.trainer.data.check import SplitReport

_SHOWN_TOKENS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser("check", help="count, look for missing and broken files, and write a copy")
    check.add_argument(
        "name",
        metavar="NAME",
        help="flickr8k, spokencoco or spoken_scenes; a folder or parquet files; or owner/name on the Hub",
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
        help='option of the data set, such as num_scenes=100 or \'columns={"audio": "sound"}\'',
    )
    check.add_argument("--vocabulary", type=Path, metavar="FILE.npy", help="write the captions' token ids and counts")
    check.add_argument("--write", type=Path, metavar="DIR", help="folder to write a parquet copy to")
    check.add_argument("--push", metavar="OWNER/NAME", help="push it to the Hub, as a private repository")
    check.add_argument("--license", metavar="ID", help="the copy's licence as the Hub calls it, such as cc-by-4.0")
    check.add_argument("--force", action="store_true", help="replace an earlier copy")


def run(args: argparse.Namespace) -> int:
    """Check a data set; returns 1 if files are broken that were not to be skipped."""
    from dataclasses import replace

    from speechclip_plus.atomic_files import check_new_folder
    from speechclip_plus.trainer.data.check import check_dataset, push_dataset, write_parquet

    from .console import data_options

    options = data_options(args.option)
    inputs = (args.name, args.data_dir)
    if args.write:
        check_new_folder(args.write, args.force, inputs)
    reports, absent = check_dataset(args.name, args.data_dir, args.split, args.on_error, **options)
    for split, reason in absent.items():
        print(f"{split}: not there. {reason}")
    _print_reports(reports)
    _print_tokens([text for report in reports.values() for text in report.data["text"] if text], args.vocabulary)
    if any(report.findings.broken for report in reports.values()) and args.on_error == "raise":
        print("Nothing is written while files are broken: mend them, or leave them out with --on-error skip.")
        return 1
    splits = {split: report.data for split, report in reports.items()}
    if args.write:
        facts = replace(_card_facts(args, reports), repo_id=args.write.name)
        names = write_parquet(splits, args.write, args.force, facts, inputs)
        print(f"{args.write}: {len(names)} parquet file{'s' if len(names) > 1 else ''}")
    if args.push:
        print(push_dataset(splits, args.push, _card_facts(args, reports)))
        print("A new repository is private until you make it public, which the corpus's licence has to allow.")
    return 0


def _print_reports(reports: Mapping[str, "SplitReport"]) -> None:
    from .console import format_table

    rows = []
    found: dict[str, list[str]] = {}  # what holds for the corpus as a whole is said once
    for split, report in reports.items():
        size, broken = report.size, len(report.findings.broken)
        counts = [f"{value or 0:,}" for value in (size.rows, size.images, size.speakers)]
        seconds = [f"{value:.2f} s" for value in report.durations]
        rows.append((split, [*counts, f"{size.hours:.2f}", *seconds, f"{broken:,}"]))
        for line in report.findings.lines():
            found.setdefault(line, []).append(split)
    print(format_table(["recordings", "images", "speakers", "hours", "shortest", "mean", "longest", "broken"], rows))
    for line, splits in found.items():
        print(f"{', '.join(splits)}: {line}")


def _print_tokens(captions: Sequence[str], file: Path | None) -> None:
    """Print the commonest tokens of the captions, and write all of them to `file`."""
    import numpy as np

    from speechclip_plus.conversion.open_clip import openai_tokenizer
    from speechclip_plus.modeling_speechclip_plus.keywords import token_text
    from speechclip_plus.trainer.data.check import count_tokens

    if not captions:
        if file is not None:
            raise ValueError(f"There are no written captions, so no vocabulary for {file}.")
        print("captions: none written")
        return
    tokenizer = openai_tokenizer()
    counts, truncated = count_tokens(captions, tokenizer)
    special = {0, tokenizer.bos_token_id, tokenizer.eos_token_id}
    shown = [f"{token_text(tokenizer, token)} {times:,}" for token, times in counts.tolist() if token not in special]
    print(
        f"captions: {len(captions):,}, {len(set(captions)):,} of them different, with {len(counts):,} of CLIP's token "
        f"ids (padding, start and end among them); most frequent: {', '.join(shown[:_SHOWN_TOKENS])}"
    )
    if truncated:
        print(f"captions: {truncated:,} are longer than CLIP's {tokenizer.model_max_length} positions and are cut")
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, counts)
        print(f"{file}: {len(counts):,} token ids and counts, most frequent first")


def _card_facts(args: argparse.Namespace, reports: Mapping[str, "SplitReport"]) -> "DatasetCardFacts":
    from speechclip_plus.hub_cards.cards import DATASETS, DatasetCardFacts
    from speechclip_plus.trainer.card_data import given_name

    name = given_name(args.name, args.data_dir)
    options = [f"--option {option}" for option in args.option if "/" not in option]
    skipped = ["--on-error skip"] if args.on_error == "skip" else []
    written = {split: sum(map(bool, report.data["text"])) for split, report in reports.items()}
    return DatasetCardFacts(
        name=args.push.split("/")[-1] if args.push else args.write.name,
        source=name,
        splits={split: report.size for split, report in reports.items()},
        written=written if any(written.values()) else {},
        languages=DATASETS[name].languages if name in DATASETS else (),
        made_by=" ".join(["speechclip-plus data check", name, *options, *skipped]),
        left_out={split: len(report.findings.broken) for split, report in reports.items()},
        license=args.license,
    )
