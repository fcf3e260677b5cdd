"""`speechclip-plus push`: a folder to a repository on the Hub, checked first and in one commit."""

import argparse
from pathlib import Path

REPO_TYPES = ("model", "dataset", "space")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="what to push; of a training, its model")
    parser.add_argument("repo_id", metavar="OWNER/NAME", help="repository; made if it is not there")
    parser.add_argument("--type", choices=REPO_TYPES, default="model", help="kind of repository (default: model)")
    parser.add_argument("--private", action="store_true", help="a new repository can be seen by its owner alone")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to push to; made if it is not there")
    parser.add_argument("--tag", help="name for this version, by which it can be loaded (revision=TAG)")
    parser.add_argument("--message", help="what this version is (default: Upload model)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead")
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN", help="leave files out; may be given again"
    )
    parser.add_argument("--dry-run", action="store_true", help="check and list, but send nothing")


def run(args: argparse.Namespace) -> int:
    """Check and list what is sent, then push it."""
    from speechclip_plus.hub_cards.push import prepared_folder, push_folder

    if not (args.folder / "config.json").is_file() and (args.folder / "model" / "config.json").is_file():
        args.folder /= "model"  # of a training or a quickstart
    with prepared_folder(args.folder, args.repo_id, args.type, args.exclude) as prepared:
        files = sorted(file for file in prepared.rglob("*") if file.is_file())
        sizes = {file.relative_to(prepared).as_posix(): file.stat().st_size for file in files}
        width = max(map(len, sizes))
        for name, size in sizes.items():
            print(f"{name.ljust(width)}  {size:>13,} B")
        print(f"{len(sizes)} file{'s' if len(sizes) > 1 else ''}, {sum(sizes.values()):,} B")
    if args.dry_run:
        print("nothing was sent (--dry-run)")
        return 0
    pushed = push_folder(
        args.folder,
        args.repo_id,
        repo_type=args.type,
        private=args.private or None,
        revision=args.revision,
        tag=args.tag,
        commit_message=args.message,
        create_pr=args.create_pr,
        ignore_patterns=args.exclude,
    )
    print(pushed.pr_url if args.create_pr else pushed.repo_url)
    return 0
