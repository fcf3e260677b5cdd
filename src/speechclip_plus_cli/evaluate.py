"""Command `speechclip-plus evaluate`: measures a saved model on a split; writes results.json and a page."""

import argparse
import datetime
import time
from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import data_options, format_table, load_model, model_source, positive, quiet_libraries

if TYPE_CHECKING:
    from speechclip_plus.hub_cards.results import Results, ScoreTable

RESULTS = "results.json"
REPORT = "report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.add_argument("model", metavar="MODEL", help="folder of a saved model with its processor, or Hub repository")
    parser.add_argument("--data", required=True, metavar="NAME_OR_PATH", help="data set by name, or a folder")
    parser.add_argument("--data-dir", type=Path, help="where the data set's files are")
    parser.add_argument("--split", default="test", help="train, validation or test (default: test)")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="option of the data set; may be repeated"
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N utterances")
    parser.add_argument("--alignments", type=Path, metavar="DIR", help="word alignments: TextGrid or CTM files")
    parser.add_argument("--batch-size", type=positive, default=16, help="utterances at a time (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap and the shuffled captions (default: 0)")
    parser.add_argument(
        "--output-dir", type=Path, help="folder to make (default: evaluation/MODEL-DATA-SPLIT, by their names)"
    )
    parser.add_argument("--force", action="store_true", help="replace the folder if it exists")
    parser.add_argument("--update-card", action="store_true", help="put the results into MODEL's README.md too")


def run(args: argparse.Namespace) -> int:
    """Evaluate; returns the exit code.

    Raises:
        ValueError, OSError: if the model, the data or the alignments cannot be used; nothing is left behind then.
    """
    from tqdm.auto import tqdm

    from speechclip_plus.atomic_files import check_new_folder, finished_folder, write_json
    from speechclip_plus.hub_cards.cards import CARD, versions
    from speechclip_plus.hub_cards.report import write_report
    from speechclip_plus.hub_cards.results import Results, result_tables, update_card
    from speechclip_plus.trainer.data.load import load_speech_image_dataset
    from speechclip_plus.trainer.evaluation.alignments import read_alignments
    from speechclip_plus.trainer.evaluation.evaluate import embed_split, evaluate
    from speechclip_plus.trainer.reports import evaluation_report

    started = time.perf_counter()
    source = model_source(args.model)
    about = Results(
        model=source,
        dataset=str(args.data),
        data_dir=None if args.data_dir is None else str(args.data_dir),
        split=args.split,
        options=data_options(args.option),
        limit=args.limit,
    )
    output_dir = args.output_dir or Path("evaluation", f"{_model_name(source)}-{about.dataset_name}-{args.split}")
    check_new_folder(output_dir, args.force, (args.model, args.data, args.data_dir, args.alignments))
    card = Path(source) / CARD
    if args.update_card and not card.is_file():
        raise ValueError(f"--update-card writes into the card of a folder: there is no {card}.")
    alignments = None if args.alignments is None else read_alignments(args.alignments)
    quiet_libraries()
    model, processor = load_model(source)
    if alignments is not None and not model.config.has_cif:
        raise ValueError(
            f"A {model.config.model_variant} model has no CIF to compare with --alignments: leave them out."
        )
    dataset = load_speech_image_dataset(args.data, split=args.split, data_dir=args.data_dir, **about.options)
    if args.limit is not None:
        dataset = dataset.select(range(min(args.limit, len(dataset))))
    with tqdm(desc="embedding", unit="item", disable=None, leave=False) as bar:
        split = embed_split(model, processor, dataset, args.batch_size, bar.update)
    preset = published_preset(model.config)
    results = replace(
        evaluate(split, model, processor.tokenizer, alignments, seed=args.seed),
        published=published_figures(preset, args.data, args.split) if preset and args.limit is None else {},
        presets=[preset] if preset else [],
        captions=sum(map(bool, split.captions)),
        hours=round(sum(split.seconds) / 3600, 4),
        versions=versions(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        how="`speechclip-plus evaluate`",
        **{name: getattr(about, name) for name in ("model", "dataset", "data_dir", "split", "options", "limit")},
    )
    tables = result_tables(results)
    _print(tables, results.notes)
    report = evaluation_report(model, processor, dataset, split, results, tables, _facts(results))
    with finished_folder(output_dir) as work:
        write_report(work / REPORT, report)
        write_json(work / RESULTS, replace(results, seconds=round(time.perf_counter() - started, 1)).to_dict())
    if args.update_card:
        update_card(card, results)
    print(f"\n{output_dir / RESULTS} and {output_dir / REPORT}, in {time.perf_counter() - started:.0f} s")
    return 0


def _print(tables: "Sequence[ScoreTable]", notes: Sequence[str]) -> None:
    for table in tables:
        rows = [(f"  {row.name}" if row.is_baseline else row.name, row.texts) for row in table.rows]
        print(f"\n{table.caption}\n{format_table(table.columns, rows)}")
    for note in notes:
        print(f"note: {note}")


def _model_name(source: str) -> str:
    """Name of a repository or a folder; of the one above where that is just called "model"."""
    path = Path(source).absolute()
    return path.parent.name if path.name == "model" else path.name


def published_preset(config: Any) -> str | None:
    """Name of the preset that a configuration was made from, if it is a published one and still says the same."""
    from speechclip_plus.configuration.presets import published_results
    from speechclip_plus.conversion.original_config import settings_of_preset

    if not config.preset or not published_results(config.preset):
        return None
    preset = type(config).from_preset(config.preset)
    # What a preset says, but where its backbones come from; and the sizes that it may leave to the defaults.
    keys = [key for key in settings_of_preset(config.preset) if key.partition(".")[0].endswith(("_config", "branch"))]
    keys += ["normalize_hidden_states", "speech_config.hidden_size", "speech_config.num_hidden_layers"]
    keys += ["clip_config.projection_dim", "clip_config.vision_config.patch_size"]
    values = attrgetter(*keys)
    same = config.model_variant == preset.model_variant and values(config) == values(preset)
    return config.preset if same else None


def published_figures(preset: str, data: str, split: str) -> dict[str, Any]:
    """What the authors reported of a published model, in percent by metric, on the data that it is named after."""
    from speechclip_plus.configuration.presets import load_preset, published_results

    figures = published_results(preset).get(split)
    return {"preset": preset, **figures} if figures and load_preset(preset)["dataset"] == data else {}


def _facts(results: "Results") -> list[tuple[str, str]]:
    counts, published = results.metrics, results.published
    # A run calls every model "model": the folder above tells which.
    name = "/".join(Path(results.model).resolve().parts[-2:]) if Path(results.model).exists() else results.model
    facts = {
        "model": name,
        "variant": results.variant,
        "data": results.title,
        "size": f"{counts['utterances']:,} utterances ({results.hours:.2f} hours), {counts['images']:,} images, "
        f"{results.captions:,} with a caption",
        "as published": ", ".join(results.presets),
        "published figures": (
            f"{published['preset']}, {published.get('source', 'file name of the weights')}" if published else ""
        ),
        "date": results.date,
        "versions": ", ".join(f"{package} {version}" for package, version in results.versions.items()),
    }
    return [(name, value) for name, value in facts.items() if value]
