"""`speechclip-plus evaluate`: measure a saved model on a split, and write the results and a page to look at."""

import argparse
import datetime
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from speechclip_plus.atomic_files import check_new_folder, finished_folder, write_json
from speechclip_plus.configuration.configuration_speechclip_plus import SpeechClipPlusConfig
from speechclip_plus.configuration.presets import published_results
from speechclip_plus.conversion.original_config import matching_presets, settings_of_preset
from speechclip_plus.hub_cards.model_card import CARD, versions
from speechclip_plus.hub_cards.report import write_report
from speechclip_plus.hub_cards.results import Results, ScoreTable, result_tables, update_card
from speechclip_plus.trainer.data.load import load_speech_image_dataset
from speechclip_plus.trainer.evaluation.alignments import read_alignments
from speechclip_plus.trainer.evaluation.evaluate import embed_split, evaluate
from speechclip_plus.trainer.evaluation.report import evaluation_report

from .console import data_options, format_table, load_model, model_source, positive, quiet_libraries

RESULTS = "results.json"
REPORT = "report.html"
# Where a model's backbones came from says nothing about what it computes.
_IGNORED_SETTINGS = {"speech_backbone", "clip_backbone"}
_SIZES = (
    "speech_config.model_type",
    "speech_config.hidden_size",
    "speech_config.num_hidden_layers",
    "clip_config.projection_dim",
    "clip_config.text_config.hidden_size",
    "clip_config.vision_config.hidden_size",
    "clip_config.vision_config.patch_size",
)


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
    parser.add_argument("--output-dir", type=Path, default=Path("evaluation"), help="folder to make")
    parser.add_argument("--force", action="store_true", help="replace the folder if it exists")
    parser.add_argument("--update-card", action="store_true", help="put the results into MODEL's README.md too")


def run(args: argparse.Namespace) -> int:
    """Evaluate; returns the exit code.

    Raises:
        ValueError, OSError: if the model, the data or the alignments cannot be used; nothing is left behind then.
    """
    started = time.perf_counter()
    check_new_folder(args.output_dir, args.force, (args.model, args.data, args.data_dir, args.alignments))
    options = data_options(args.option)
    source = model_source(args.model)
    card = Path(source) / CARD
    if args.update_card and not card.is_file():
        raise ValueError(f"--update-card writes into the card of a folder: there is no {card}.")
    alignments = None if args.alignments is None else read_alignments(args.alignments)
    quiet_libraries()
    model, processor = load_model(source)
    if alignments is not None and not model.config.has_cif:
        raise ValueError(
            f"Alignments are compared with where CIF fires, and this {model.config.variant} model has no CIF: "
            "leave --alignments out."
        )
    dataset = load_speech_image_dataset(args.data, split=args.split, data_dir=args.data_dir, **options)
    if args.limit is not None:
        dataset = dataset.select(range(min(args.limit, len(dataset))))
    with tqdm(desc="embedding", unit="item", disable=None, leave=False) as bar:
        split = embed_split(model, processor, dataset, args.batch_size, bar.update)
    presets = presets_of_model(model.config, processor)
    results = replace(
        evaluate(split, model, processor.tokenizer, alignments, seed=args.seed),
        published=(published_figures(presets, args.data, args.split) if args.limit is None else None) or {},
        model=source,
        presets=presets,
        dataset=str(args.data),
        data_dir=None if args.data_dir is None else str(args.data_dir),
        split=args.split,
        options=options,
        limit=args.limit,
        captions=sum(map(bool, split.captions)),
        hours=round(sum(split.seconds) / 3600, 4),
        versions=versions(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        how="`speechclip-plus evaluate`",
    )
    tables = result_tables(results)
    for table in tables:
        print(f"\n{table.caption}\n{format_table(table.columns, _lines(table))}")
    for note in results.notes:
        print(f"note: {note}")
    report = evaluation_report(model, processor, dataset, split, results, tables, _facts(results))
    with finished_folder(args.output_dir) as work:
        write_report(work / REPORT, report)
        write_json(work / RESULTS, replace(results, seconds=round(time.perf_counter() - started, 1)).to_dict())
    if args.update_card:
        update_card(card, results)
    print(f"\n{args.output_dir / RESULTS} and {args.output_dir / REPORT}, in {time.perf_counter() - started:.0f} s")
    return 0


def _lines(table: ScoreTable) -> list[tuple[str, list[str]]]:
    return [(f"  {row.name}" if row.is_baseline else row.name, row.texts) for row in table.rows]


def presets_of_model(config: Any, processor: Any) -> list[str]:
    """Names of the published configurations that a model agrees with, in size and in everything that they say."""
    values = {**config.to_dict(), "do_normalize": getattr(processor.feature_extractor, "do_normalize", None)}
    names = matching_presets({})  # nothing contradicts nothing: all of them
    keys = {key for name in names for key in settings_of_preset(name)} - _IGNORED_SETTINGS
    sizes = [_setting(values, key) for key in _SIZES]  # which presets leave to the defaults
    return [
        name
        for name in matching_presets({key: _setting(values, key) for key in keys})
        if sizes == [_setting(SpeechClipPlusConfig.from_preset(name).to_dict(), key) for key in _SIZES]
    ]


def _setting(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def published_figures(presets: Sequence[str], data: str, split: str) -> dict[str, Any] | None:
    """What the authors reported of a model on a split.

    Args:
        presets: the configurations it agrees with.
        data: name of the data set; figures are only comparable on the one that a preset is named after.
        split: "validation" or "test".

    Returns:
        Figures in percent by metric, with their `source` and the `preset`; None if there are none.
    """
    for preset in presets:
        figures = published_results(preset).get(split)
        if figures and preset.endswith(f"-{data}"):
            return {"preset": preset, **figures}
    return None


def _facts(results: Results) -> list[tuple[str, str]]:
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
