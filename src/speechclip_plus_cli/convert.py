"""Command `speechclip-plus convert`: a checkpoint of the original research code becomes a folder to load."""

import argparse
import time
from collections import Counter
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="file that the original research code wrote")
    parser.add_argument("output_dir", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--preset", help="published configuration that fills in what the checkpoint does not tell")
    parser.add_argument("--vocabulary", type=Path, metavar="FILE", help=".npy of CLIP token ids of a reduced table")
    parser.add_argument("--clip", metavar="REPO_OR_DIR", help="CLIP with the full token table, if CKPT has none")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


def run(args: argparse.Namespace) -> int:
    """Convert; returns the exit code."""
    from speechclip_plus.conversion.convert import convert_checkpoint

    start = time.perf_counter()
    print(f"reading {args.checkpoint}", flush=True)
    conversion = convert_checkpoint(
        args.checkpoint,
        args.output_dir,
        preset=args.preset,
        vocabulary=args.vocabulary,
        clip=args.clip,
        force=args.force,
    )
    size = sum(file.stat().st_size for file in args.output_dir.iterdir())
    print(f"{conversion.config.model_variant}, as published: {', '.join(conversion.presets) or 'none of these sizes'}")
    print(f"{conversion.used} tensors used; {len(conversion.ignored)} not:")
    reasons = Counter(reason.partition(" of clip.")[0] for reason in conversion.ignored.values())
    for reason, count in reasons.most_common():
        print(f"  {count} {reason}")
    for note in conversion.notes:
        print(f"note: {note}")
    print(f"{args.output_dir}: {size / 1e6:,.0f} MB in {time.perf_counter() - start:.0f} s")
    return 0
