"""Command `speechclip-plus import-clip`: an open_clip model becomes a `CLIPModel` folder that serves as a backbone."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.add_argument("architecture", metavar="ARCH", help="open_clip's name, such as ViT-B-32")
    parser.add_argument("pretrained", metavar="PRETRAINED_OR_FILE", help="open_clip's tag, or a file of weights")
    parser.add_argument("output_dir", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


def run(args: argparse.Namespace) -> int:
    """Import; returns the exit code."""
    from speechclip_plus.conversion.open_clip import import_open_clip

    difference = import_open_clip(args.architecture, args.pretrained, args.output_dir, force=args.force)
    print(f"{args.output_dir}: a CLIPModel; its outputs differ from open_clip's by at most {difference:.1e}")
    return 0
