"""`speechclip-plus data check`: contents of a data set, what is broken in it, and a copy of it as parquet."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from speechclip_plus.hub_cards.cards import DatasetCardFacts
    from speechclip_plus.trainer.data.check import DatasetReport

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
    from speechclip_plus.trainer.data.check import check_dataset
    from speechclip_plus.trainer.data.export import push_dataset, write_parquet

    from .console import data_options

    options = data_options(args.option)
    inputs = (args.name, args.data_dir)
    if args.write:
        check_new_folder(args.write, args.force, inputs)
    report = check_dataset(args.name, args.data_dir, args.split, args.on_error, **options)
    _print_report(report)
    _print_tokens([text for split in report.splits.values() for text in split.data["text"] if text], args.vocabulary)
    if any(report.broken.values()) and args.on_error == "raise":
        print("Nothing is written while files are broken: mend them, or leave them out with --on-error skip.")
        return 1
    splits = {split: found.data for split, found in report.splits.items()}
    if args.write:
        facts = replace(_card_facts(args, report), repo_id=args.write.name)
        names = write_parquet(splits, args.write, args.force, facts, inputs)
        print(f"{args.write}: {len(names)} parquet file{'s' if len(names) > 1 else ''}")
    if args.push:
        print(push_dataset(splits, args.push, _card_facts(args, report)))
        print("A new repository is private until you make it public, which the corpus's licence has to allow.")
    return 0


def _print_report(report: "DatasetReport") -> None:
    from .console import format_table

    for split, reason in report.absent.items():
        print(f"{split}: not there. {reason}")
    rows = []
    for split, found in report.splits.items():
        counts = [f"{value or 0:,}" for value in (found.size.rows, found.size.images, found.size.speakers)]
        seconds = [f"{value:.2f} s" for value in found.durations]
        rows.append((split, [*counts, f"{found.size.hours:.2f}", *seconds, f"{report.broken[split]:,}"]))
    columns = ["recordings", "images", "speakers", "hours", "shortest", "mean", "longest", "broken"]
    print(format_table(columns, rows))
    for line in report.findings():
        print(line)


def _print_tokens(captions: Sequence[str], file: Path | None) -> None:
    """Print the commonest tokens of the captions, and write all of them to `file`."""
    import io

    import numpy as np

    from speechclip_plus.atomic_files import write_bytes
    from speechclip_plus.conversion.vocabulary import openai_tokenizer
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
        buffer = io.BytesIO()
        np.save(buffer, counts)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, buffer.getvalue())
        print(f"{file}: {len(counts):,} token ids and counts, most frequent first")


def _card_facts(args: argparse.Namespace, report: "DatasetReport") -> "DatasetCardFacts":
    from speechclip_plus.hub_cards.cards import DatasetCardFacts
    from speechclip_plus.trainer.card_data import given_name, spoken_languages

    name = given_name(args.name, args.data_dir)
    options = [f"--option {option}" for option in args.option if "/" not in option]
    skipped = ["--on-error skip"] if args.on_error == "skip" else []
    written = {split: sum(map(bool, found.data["text"])) for split, found in report.splits.items()}
    return DatasetCardFacts(
        name=args.push.split("/")[-1] if args.push else args.write.name,
        source=name,
        splits={split: found.size for split, found in report.splits.items()},
        written=written if any(written.values()) else {},
        languages=spoken_languages(name, next(iter(report.splits.values())).data),
        made_by=" ".join(["speechclip-plus data check", name, *options, *skipped]),
        left_out=report.broken,
        license=args.license,
    )
