"""`speechclip-plus import-clip`: an open_clip model becomes a `CLIPModel` folder that serves as a backbone."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..atomic_files import check_new_folder, finished_folder
from .open_clip import convert_open_clip

_MAX_SHARD_SIZE = "2GB"


def import_open_clip(
    architecture: str,
    pretrained: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    force: bool = False,
) -> float:
    """Turn an open_clip model into a folder of transformers' `CLIPModel`, with tokenizer and image processor.

    Args:
        architecture: open_clip's name of it, such as `"ViT-B-32"` or `"ViT-L-14-quickgelu"`.
        pretrained: One of open_clip's tags, such as `"laion2b_s34b_b79k"`, which is downloaded, or a file of weights.
        output_dir: Folder to make.
        force: Replace `output_dir` if it exists.

    Returns:
        The largest difference of any output between both models, on random inputs.

    Raises:
        ValueError: If the architecture is unknown or no plain CLIP; the message names what stands against it.
        OSError: If the weights are not there.
    """
    output_dir = Path(output_dir)
    check_new_folder(output_dir, force)
    converted = convert_open_clip(architecture, pretrained)
    with finished_folder(output_dir) as work:
        converted.tokenizer.save_pretrained(work)
        converted.image_processor.save_pretrained(work)
        converted.model.save_pretrained(work, max_shard_size=_MAX_SHARD_SIZE)
        (work / "README.md").write_text(_card(output_dir.name, architecture, pretrained), encoding="utf-8")
    return converted.difference


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.add_argument("architecture", metavar="ARCH", help="open_clip's name, such as ViT-B-32")
    parser.add_argument("pretrained", metavar="PRETRAINED_OR_FILE", help="open_clip's tag, or a file of weights")
    parser.add_argument("output_dir", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


def run(args: argparse.Namespace) -> int:
    """Import; returns the exit code."""
    difference = import_open_clip(args.architecture, args.pretrained, args.output_dir, force=args.force)
    print(f"{args.output_dir}: a CLIPModel; its outputs differ from open_clip's by at most {difference:.1e}")
    return 0


def _card(name: str, architecture: str, pretrained: str | os.PathLike) -> str:
    source = Path(pretrained).name if os.path.exists(pretrained) else pretrained
    return (
        "---\nlibrary_name: transformers\ntags:\n- clip\n---\n\n"
        f"# {name}\n\nopen_clip's `{architecture}` with the weights `{source}`, converted to transformers' `CLIPModel`"
        " by speechclip-plus. The licence is that of those weights.\n"
    )
