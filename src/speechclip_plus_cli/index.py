"""Command `speechclip-plus index`: makes images or audio searchable, and searches them.

speechclip-plus index build images/ my-index
speechclip-plus index search my-index --speech query.wav --top 5 --html found.html
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import (
    QUICKSTART_MODEL,
    data_options,
    format_table,
    load_model,
    model_source,
    positive,
    quiet_libraries,
)

if TYPE_CHECKING:
    from speechclip_plus import EmbeddingIndex
    from speechclip_plus.trainer.reports import Query


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_build(actions.add_parser("build", help="embed images or audio; stopped, the same command goes on"))
    _add_search(actions.add_parser("search", help="find what is nearest to speech, texts or images"))


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="folder of images or audio files; parquet files; a data set by name or path, or owner/name on the Hub",
    )
    parser.add_argument("output", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument(
        "--model",
        metavar="DIR_OR_REPO",
        help=f"model with its processor (default: {QUICKSTART_MODEL}, if there is one)",
    )
    parser.add_argument(
        "--kind",
        choices=["images", "audio"],
        help="what to embed (default: what a folder holds; of a data set the images)",
    )
    parser.add_argument("--data-dir", metavar="DIR", help="where a data set's files are")
    parser.add_argument("--split", action="append", help="of a data set; may be repeated (default: all there are)")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="option of the data set; may be repeated"
    )
    parser.add_argument(
        "--branch", choices=["parallel", "cascaded"], help="that embeds audio (default: the model's own choice)"
    )
    parser.add_argument("--batch-size", type=positive, default=16, help="items embedded together (default: 16)")
    parser.add_argument("--shard-size", type=positive, default=256, help="items written together (default: 256)")
    parser.add_argument(
        "--on-error",
        choices=["raise", "skip"],
        default="raise",
        help="raise: stop at a broken file; skip: leave it out and list it",
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


def _add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", type=Path, metavar="INDEX", help="folder that `index build` made")
    for name, metavar, help_text in (
        ("speech", "FILE", "audio files to search by"),
        ("text", "TEXT", "texts to search by"),
        ("image", "FILE", "images to search by"),
    ):
        parser.add_argument(f"--{name}", nargs="+", action="extend", default=[], metavar=metavar, help=help_text)
    parser.add_argument("--top", type=positive, default=5, metavar="K", help="how many to find (default: 5)")
    parser.add_argument("--model", metavar="DIR_OR_REPO", help="where the index's model is now, if it was moved")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON instead of tables")
    output.add_argument("--html", type=Path, metavar="FILE", help="write a page with the images or audio in it")


def run(args: argparse.Namespace) -> int:
    """Build or search; returns the exit code."""
    return _build(args) if args.action == "build" else _search(args)


def _build(args: argparse.Namespace) -> int:
    from tqdm.auto import tqdm

    from speechclip_plus import build_index

    name = model_source(args.model)
    given = ("kind", "split", "data_dir", "branch", "batch_size", "shard_size", "on_error", "force")
    options = {**data_options(args.option), **{key: getattr(args, key) for key in given}}
    quiet_libraries()
    model, processor = load_model(name)
    with tqdm(desc="embedding", unit="item", disable=None, leave=False) as bar:

        def show(done: int, total: int) -> None:
            if bar.total is None:
                bar.total = total
                if done:
                    bar.initial = done
                    bar.write(f"going on after {done:,} of {total:,}")
            bar.update(done - bar.n)

        try:
            index = build_index(args.source, args.output, model, processor, progress=show, **options)
        except KeyboardInterrupt:
            bar.write("stopped: the same command goes on from here")
            raise
    print(f"{args.output}: {len(index):,} {index.kind}, {index.width} dimensions, by {name}")
    for line in index.facts["skipped"]:
        print(f"left out: {line}")
    print(f"search it: speechclip-plus index search {args.output} --speech query.wav")
    return 0


def _search(args: argparse.Namespace) -> int:
    import torch

    from speechclip_plus import EmbeddingIndex
    from speechclip_plus.hub_cards.report import write_report
    from speechclip_plus.trainer.reports import found_items, search_report

    index = EmbeddingIndex.load(args.index)
    queries = _read_queries(args)
    quiet_libraries()
    model, processor = _load_index_model(index, args.model)
    index.check_model(model)
    embeds = torch.cat([query.embed(model, processor, index.branch) for query in queries])
    found = found_items(index, *index.search(embeds, args.top))
    if args.json:
        answers = [
            {"query": {query.kind: query.value}, "found": items} for query, items in zip(queries, found, strict=True)
        ]
        print(json.dumps(answers, indent=2, ensure_ascii=False))
        return 0
    for query, items in zip(queries, found, strict=True):
        name = f'"{query.value}"' if query.kind == "text" else query.value
        print(f"{name}: {len(items)} nearest of {len(index):,} {index.kind}")
        print(_table(items))
    if args.html is not None:
        args.html.parent.mkdir(parents=True, exist_ok=True)
        write_report(args.html, search_report(model, processor, index, queries, found))
        print(f"page: {args.html}")
    return 0


def _read_queries(args: argparse.Namespace) -> "list[Query]":
    from speechclip_plus.modeling_speechclip_plus.audio_utils import load_audio
    from speechclip_plus.modeling_speechclip_plus.image_utils import load_image
    from speechclip_plus.trainer.reports import Query

    queries = [Query("speech", path, load_audio(path, name="--speech")) for path in args.speech]
    queries += [Query("text", text, text) for text in args.text]
    queries += [Query("image", path, load_image(path, name="--image")) for path in args.image]
    if not queries:
        raise ValueError("Search by what? Give --speech FILE, --text TEXT or --image FILE; several of each if wanted.")
    if blank := [query.value for query in queries if not query.value.strip()]:
        raise ValueError(f"--text {blank[0]!r} is empty: give some words.")
    return queries


def _load_index_model(index: "EmbeddingIndex", given: str | None) -> tuple[Any, Any]:
    if given is not None:
        return load_model(given)
    name = index.model["name"]
    if not name or (Path(name).is_absolute() and not Path(name).exists()):
        where = f"is not at {name} any more" if name else "had no name"
        raise ValueError(f"The model that made the index {index.folder} {where}: say where it is with --model.")
    return load_model(name, index.model.get("revision"))


def _table(items: Sequence[dict[str, Any]]) -> str:
    rows = []
    for item in items:
        path = Path(item.get("path", item["id"]))
        path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        text = f'  "{item["text"]}"' if "text" in item else ""
        seconds = [f"{item['seconds']:.1f} s"] if "seconds" in item else []
        rows.append((f"{item['rank']}. {path}{text}", [f"{item['score']:.3f}", *seconds]))
    return format_table(["score", "length"][: len(rows[0][1])], rows)
