"""`speechclip-plus index`: make a gallery of pictures or recordings searchable, and search it.

speechclip-plus index build pictures/ gallery
speechclip-plus index search gallery --speech query.wav --top 5 --html found.html
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from speechclip_plus.hub_cards.report import write_report
from speechclip_plus.modeling_speechclip_plus.audio_utils import SAMPLING_RATE, load_audio
from speechclip_plus.modeling_speechclip_plus.embedding_index import EmbeddingIndex
from speechclip_plus.modeling_speechclip_plus.image_utils import load_image
from speechclip_plus.modeling_speechclip_plus.pipelines.text_prompts import embed_texts
from speechclip_plus.trainer.batched_embedding import embed_pixels, picture_pixels, speech_inputs
from speechclip_plus.trainer.search.build import BATCH_SIZE, build_index
from speechclip_plus.trainer.search.page import Found, Query, found_items, search_report

from .console import QUICKSTART_MODEL, data_options, load_model, model_source, positive, quiet_libraries

_NAMES = {"images": "pictures", "recordings": "recordings"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_build(actions.add_parser("build", help="embed a gallery; stopped, the same command goes on"))
    _add_search(actions.add_parser("search", help="find what is nearest to speech, texts or pictures"))


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "gallery",
        metavar="GALLERY",
        help="folder of pictures or recordings; parquet files; a data set by name or path, or owner/name on the Hub",
    )
    parser.add_argument("output", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument(
        "--model",
        metavar="DIR_OR_REPO",
        help=f"model with its processor (default: {QUICKSTART_MODEL}, if there is one)",
    )
    parser.add_argument(
        "--kind", choices=list(_NAMES), help="what to embed (default: what a folder holds; of a data set the images)"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="where a data set's files are")
    parser.add_argument("--split", action="append", help="of a data set; may be repeated (default: all there are)")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="option of the data set; may be repeated"
    )
    parser.add_argument(
        "--branch", choices=["parallel", "cascaded"], help="that embeds recordings (default: the model's own choice)"
    )
    parser.add_argument(
        "--batch-size", type=positive, default=BATCH_SIZE, help=f"items at a time (default: {BATCH_SIZE})"
    )
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
        ("speech", "FILE", "recordings to search by"),
        ("text", "TEXT", "texts to search by"),
        ("image", "FILE", "pictures to search by"),
    ):
        parser.add_argument(f"--{name}", nargs="+", action="extend", default=[], metavar=metavar, help=help_text)
    parser.add_argument("--top", type=positive, default=5, metavar="K", help="how many to find (default: 5)")
    parser.add_argument("--model", metavar="DIR_OR_REPO", help="where the index's model is now, if it was moved")
    parser.add_argument("--faiss", action="store_true", help="search by FAISS (extra: faiss)")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON instead of tables")
    output.add_argument("--html", type=Path, metavar="FILE", help="write a page with the pictures or recordings in it")


def run(args: argparse.Namespace) -> int:
    """Build or search; returns the exit code."""
    return _build(args) if args.action == "build" else _search(args)


def _build(args: argparse.Namespace) -> int:
    name = model_source(args.model)
    options = data_options(args.option)
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
            index = build_index(
                args.gallery,
                args.output,
                model,
                processor,
                kind=args.kind,
                split=args.split,
                data_dir=args.data_dir,
                branch=args.branch,
                batch_size=args.batch_size,
                on_error=args.on_error,
                force=args.force,
                progress=show,
                **options,
            )
        except KeyboardInterrupt:
            bar.write("stopped: the same command goes on from here")
            raise
    print(f"{args.output}: {len(index):,} {_NAMES[index.kind]}, {index.embeddings.shape[1]} dimensions, by {name}")
    for line in index.facts["skipped"]:
        print(f"left out: {line}")
    print(f"search it: speechclip-plus index search {args.output} --speech query.wav")
    return 0


def _search(args: argparse.Namespace) -> int:
    index = EmbeddingIndex.load(args.index)
    queries = _read_queries(args)
    quiet_libraries()
    model, processor = _load_index_model(index, args.model)
    index.check_model(model)
    embeds = torch.cat([_embed(model, processor, index, query) for query in queries])
    if args.faiss:
        from speechclip_plus.trainer.search.faiss_search import search_with_faiss

        found = found_items(index, *search_with_faiss(index, embeds, args.top))
    else:
        found = found_items(index, *index.search(embeds, args.top))
    if args.json:
        print(json.dumps(_as_json(queries, found), indent=2, ensure_ascii=False))
        return 0
    for query, best in zip(queries, found, strict=True):
        print(f"{_title(query)}: {len(best)} nearest of {len(index):,} {_NAMES[index.kind]}")
        print(_table(best))
    if args.html is not None:
        args.html.parent.mkdir(parents=True, exist_ok=True)
        write_report(args.html, search_report(model, processor, index, queries, found))
        print(f"page: {args.html}")
    return 0


def _read_queries(args: argparse.Namespace) -> list[Query]:
    queries = [Query("speech", path, load_audio(path, name="--speech")) for path in args.speech]
    queries += [Query("text", text, text) for text in args.text]
    queries += [Query("image", path, load_image(path, name="--image")) for path in args.image]
    if not queries:
        raise ValueError("Search by what? Give --speech FILE, --text TEXT or --image FILE; several of each if wanted.")
    if blank := [query.value for query in queries if not query.value.strip()]:
        raise ValueError(f"--text {blank[0]!r} is empty: give some words.")
    return queries


def _load_index_model(index: EmbeddingIndex, given: str | None) -> tuple[Any, Any]:
    if given is not None:
        return load_model(given)
    name = index.model["name"]
    if not name or (Path(name).is_absolute() and not Path(name).exists()):
        where = f"is not at {name} any more" if name else "had no name"
        raise ValueError(f"The model that made the index {index.folder} {where}: say where it is with --model.")
    return load_model(name, index.model.get("revision"))


@torch.no_grad()
def _embed(model: Any, processor: Any, index: EmbeddingIndex, query: Query) -> torch.Tensor:
    """Embed one query: (1, P). One at a time, so that no query depends on the others."""
    if query.kind == "text":
        return embed_texts(model, processor, [query.content])
    if query.kind == "image":
        return embed_pixels(model, [picture_pixels(processor, query.content, query.value)])
    inputs = speech_inputs(model, processor, [(0, query.content)])
    return model.get_audio_features(**inputs, branch=index.branch).pooler_output.float().cpu()


def _title(query: Query) -> str:
    if query.kind == "speech":
        return f"{query.value} ({len(query.content) / SAMPLING_RATE:.1f} s)"
    return f'"{query.value}"' if query.kind == "text" else query.value


def _table(found: Sequence[Found]) -> str:
    rows = []
    for number, one in enumerate(found, 1):
        seconds = f"{one.item['seconds']:.1f} s" if "seconds" in one.item else ""
        rows.append((str(number), f"{one.score:.3f}", seconds, _shown_path(one.item), one.item.get("text", "")))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for rank, score, seconds, path, text in rows:
        cells = [rank.rjust(widths[0]), score.rjust(widths[1]), seconds.rjust(widths[2]), path.ljust(widths[3]), text]
        lines.append("  ".join(["", *(cell for cell, width in zip(cells, widths, strict=True) if width)]).rstrip())
    return "\n".join(lines)


def _shown_path(item: dict[str, Any]) -> str:
    if "path" not in item:
        return item["id"]
    path = Path(item["path"])
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _as_json(queries: Sequence[Query], found: Sequence[Sequence[Found]]) -> list[dict[str, Any]]:
    return [
        {
            "query": {query.kind: query.value},
            "found": [
                {"rank": rank, "score": round(one.score, 6), "row": one.row, **one.item}
                for rank, one in enumerate(best, 1)
            ],
        }
        for query, best in zip(queries, found, strict=True)
    ]
