"""`speechclip-plus evaluate`: measure a saved model on a split, and write the results and a page to look at."""

import argparse
import datetime
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from speechclip_plus.atomic_files import check_new_folder, finished_folder, write_json
from speechclip_plus.configuration.configuration_speechclip_plus import SpeechClipPlusConfig
from speechclip_plus.configuration.presets import published_results
from speechclip_plus.conversion.original_config import matching_presets, settings_of_preset
from speechclip_plus.hub_cards.measured_results import results_of_file, update_card
from speechclip_plus.hub_cards.model_card import CARD
from speechclip_plus.hub_cards.report import write_report
from speechclip_plus.hub_cards.results import Measured, ScoreTable, result_tables
from speechclip_plus.hub_cards.versions import versions
from speechclip_plus.trainer.data.load import load_speech_image_dataset
from speechclip_plus.trainer.evaluation.alignments import read_alignments
from speechclip_plus.trainer.evaluation.bootstrap import RESAMPLES
from speechclip_plus.trainer.evaluation.report import evaluation_report
from speechclip_plus.trainer.evaluation.split_embeddings import SplitEmbeddings, embed_split
from speechclip_plus.trainer.evaluation.split_evaluation import SplitEvaluation, evaluate_split

from .console import data_options, load_model, model_source, positive, quiet_libraries

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
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N recordings")
    parser.add_argument("--alignments", type=Path, metavar="DIR", help="word alignments: TextGrid or CTM files")
    parser.add_argument("--batch-size", type=positive, default=16, help="recordings at a time (default: 16)")
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
    check_new_folder(args.output_dir, args.force)
    options = data_options(args.option)
    args.model = model_source(args.model)
    if args.update_card and not (Path(args.model) / CARD).is_file():
        raise ValueError(f"--update-card writes into the card of a folder: there is no {Path(args.model) / CARD}.")
    alignments = None if args.alignments is None else read_alignments(args.alignments)
    quiet_libraries()
    model, processor = load_model(args.model)
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
    evaluation = evaluate_split(model, processor, split, alignments, seed=args.seed)
    presets = presets_of_model(model.config, processor)
    published = published_figures(presets, args.data, args.split) if args.limit is None else None
    branch = model.config.retrieval_branch
    tables = result_tables(
        Measured(evaluation.metrics, evaluation.intervals, evaluation.chance, published or {}, branch)
    )
    for table in tables:
        print(f"\n{format_results(table)}")
    for note in evaluation.notes:
        print(f"note: {note}")
    data = _data_facts(args, options, split)
    content = {
        "model": {
            "path": str(args.model),
            "variant": model.config.variant,
            "retrieval_branch": branch,
            "presets": presets,
        },
        "data": data,
        "metrics": evaluation.metrics,
        "intervals": {name: list(ends) for name, ends in evaluation.intervals.items()},
        "chance": evaluation.chance,
        "published": published,
        "curves": _curves(evaluation),
        "notes": evaluation.notes,
        "bootstrap": {"resamples": RESAMPLES, "confidence": 0.95, "seed": args.seed},
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    facts = _facts(args, content)
    report = evaluation_report(model, processor, dataset, split, evaluation, tables, facts)
    with finished_folder(args.output_dir) as work:
        write_report(work / REPORT, report)
        write_json(work / RESULTS, {**content, "seconds": round(time.perf_counter() - started, 1)})
    if args.update_card:
        update_card(Path(args.model) / CARD, results_of_file(content))
    print(f"\n{args.output_dir / RESULTS} and {args.output_dir / REPORT}, in {time.perf_counter() - started:.0f} s")
    return 0


def presets_of_model(config: Any, processor: Any) -> list[str]:
    """Names of the published configurations that a model agrees with, in size and in everything that they say."""
    values = {**config.to_dict(), "do_normalize": processor.feature_extractor.do_normalize}
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


def format_results(table: ScoreTable) -> str:
    """Lay a table out as text, each interval in brackets behind its figure."""
    rows = [["", *table.columns]]
    for row in table.rows:
        ends = row.chance or [""] * len(row.cells)
        cells = [f"{cell} [{end}]" if end else cell for cell, end in zip(row.cells, ends, strict=True)]
        rows.append([f"  {row.name}" if row.is_baseline else row.name, *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join(
        [table.caption.replace("intervals below", "intervals in brackets"), *(line.rstrip() for line in lines)]
    )


def _data_facts(args: argparse.Namespace, options: Mapping[str, Any], split: SplitEmbeddings) -> dict[str, Any]:
    return {
        "name": str(args.data),
        "data_dir": None if args.data_dir is None else str(args.data_dir),
        "split": args.split,
        "options": dict(options),
        "limit": args.limit,
        "utterances": len(split.captions),
        "images": len(split.image_ids),
        "captions": sum(map(bool, split.captions)),
        "hours": round(sum(split.seconds) / 3600, 4),
    }


def _curves(evaluation: SplitEvaluation) -> dict[str, list[float]]:
    return {
        f"{branch}_{direction}": [round(value, 4) for value in values]
        for (branch, _), statistics in evaluation.retrievals.items()
        for direction, values in statistics.curves.items()
    }


def _facts(args: argparse.Namespace, content: Mapping[str, Any]) -> list[tuple[str, str]]:
    data, published = content["data"], content["published"]
    facts = [
        # A run calls every model "model": the folder above tells which.
        ("model", "/".join(Path(args.model).resolve().parts[-2:]) if Path(args.model).exists() else str(args.model)),
        ("variant", content["model"]["variant"]),
        (
            "data",
            f"{Path(data['name']).name}, split {data['split']}" + (f", first {args.limit}" if args.limit else ""),
        ),
        (
            "size",
            f"{data['utterances']:,} recordings ({data['hours']:.2f} hours), {data['images']:,} pictures, "
            f"{data['captions']:,} with a caption",
        ),
    ]
    if data["options"]:
        facts.append(("options", ", ".join(f"{key}={value}" for key, value in data["options"].items())))
    if content["model"]["presets"]:
        facts.append(("as published", ", ".join(content["model"]["presets"])))
    if published:
        facts.append(
            ("published figures", f"{published['preset']}, {published.get('source', 'file name of the weights')}")
        )
    facts.append(("date", content["date"]))
    facts.append(("versions", ", ".join(f"{name} {version}" for name, version in content["versions"].items())))
    return facts
