"""Model-card facts: what a training run and its data sets tell for a card."""

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch

from ..hub_cards.cards import DATASETS, ModelCardFacts, SplitSize
from ..hub_cards.report import Series
from ..hub_cards.results import Results
from ..modeling_speechclip_plus.audio_utils import SAMPLING_RATE, load_audio
from .evaluation.evaluate import SplitOutputs, evaluate
from .evaluation.retrieval_metrics import chance_recall
from .sampler import stored_column, utterance_lengths

EXAMPLES = 5
_LOSSES = {
    "loss": "total",
    "parallel_loss": "parallel",
    "cascaded_loss": "cascaded",
    "expected_loss": "expected tokens",
    "quantity_loss": "quantity",
}
_RECALLS = {
    "parallel_mean_R@10": "parallel, R@10",
    "cascaded_mean_R@10": "cascaded, R@10",
    "keyword_hit_rate@1": "keyword hit rate",
}
_PROGRESS = {
    "loss": "validation loss",
    "parallel_mean_R@1": "parallel R@1",
    "parallel_mean_R@10": "parallel R@10",
    "cascaded_mean_R@1": "cascaded R@1",
    "cascaded_mean_R@10": "cascaded R@10",
    "keyword_hit_rate@1": "keyword hit rate",
    "keywords_per_utterance": "keywords per utterance",
}


def trainer_card_facts(trainer: Any, **given: Any) -> ModelCardFacts:
    """Gather what a `SpeechClipPlusTrainer` knows of its model, at any time of the training.

    The fields that are `given`, such as `name` or `license`, take the place of what was gathered.
    """
    model, args, state = trainer.speech_clip, trainer.args, trainer.state
    evaluated = named_splits(trainer)
    prefix = next(iter(evaluated.values()))[0]  # the first is watched in training
    splits = {"train": trainer.train_dataset, **{split: data for split, (_, data) in evaluated.items()}}
    name = next(filter(None, map(dataset_name, splits.values())), "")
    steps = state.global_step or None
    if args.load_best_model_at_end and not trainer.is_in_train and state.best_global_step:
        steps = state.best_global_step  # that of the weights which were loaded at the end
    hours = [entry["train_hours"] for entry in state.log_history if "train_hours" in entry]
    hardware = f"CPU: {platform.processor() or platform.machine()}"
    if args.device.type == "cuda":
        hardware = f"{args.world_size} x {torch.cuda.get_device_name(args.device)}"
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    facts = ModelCardFacts(
        name=args.hub_model_id or Path(args.output_dir).resolve().name,
        config=model.config,
        parameters={"trained": trained, "frozen": sum(p.numel() for p in model.parameters()) - trained},
        dataset=name,
        languages=DATASETS[name].languages if name in DATASETS else (),
        hyperparameters=_hyperparameters(trainer),
        steps=steps,
        best_step=state.best_global_step,
        best_metric=(args.metric_for_best_model or "").removeprefix("eval_"),
        hardware=hardware,
        seconds=hours[-1] * 3600 if hours else None,
        progress=[
            {"step": step, **{title: row[prefix + name] for name, title in _PROGRESS.items() if prefix + name in row}}
            for step, row in _by_step(state.log_history, f"{prefix}loss").items()
        ],
        curves=training_curves(state.log_history, prefix),
    )
    # What takes time is gathered only if it is not given.
    if "splits" not in given:
        facts.splits = {split: split_size(data) for split, data in splits.items() if data is not None}
    if "results" not in given:
        facts.results = history_results(trainer, name, steps)
    if "examples" not in given:
        split, data = next(((s, d) for s, d in splits.items() if s != "train" and has_audio(d)), ("", None))
        facts.examples = keyword_examples(trainer, data) if data is not None else []
        facts.examples_split = split
    return replace(facts, **given)


def training_curves(history: Sequence[Mapping[str, float]], prefix: str = "eval_") -> dict[str, dict[str, Series]]:
    """Losses and recalls of a trainer's log over the steps, for the card's chart."""
    panels = {
        "Loss": {**_LOSSES, f"{prefix}loss": "validation"},
        "Validation recall, %": {f"{prefix}{name}": title for name, title in _RECALLS.items()},
    }
    curves: dict[str, dict[str, Series]] = {}
    for panel, names in panels.items():
        entries = {name: _by_step(history, name) for name in names}
        curves[panel] = {
            names[name]: (list(rows), [row[name] for row in rows.values()]) for name, rows in entries.items() if rows
        }
    return curves


def _hyperparameters(trainer: Any) -> dict[str, Any]:
    args, state = trainer.args, trainer.state
    total = state.max_steps if state.max_steps > 0 else args.max_steps
    batch = f"{args.train_batch_size * args.world_size} pairs, all negatives of each other"
    if args.gradient_accumulation_steps > 1:
        batch += f"; {args.gradient_accumulation_steps} such batches a step"
    optimizer = "Adam, L2" if args.optimizer == "adam" else f"{getattr(args.optim, 'value', args.optim)}, weight decay"
    schedule = args.schedule if args.schedule == "warmup_decay" else args.lr_scheduler_type
    warmup = args.get_warmup_steps(total) if total > 0 else args.warmup_steps
    return {
        "batch": batch,
        "steps": f"{state.global_step:,}" if state.global_step == total else f"{state.global_step:,} of {total:,}",
        "optimiser": f"{optimizer} {args.weight_decay:g}",
        "learning rate": f"{args.learning_rate:g}, warm-up {warmup:g} steps, {getattr(schedule, 'value', schedule)}",
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "seed": args.seed,
    }


def _by_step(history: Sequence[Mapping[str, float]], name: str) -> dict[int, Mapping[str, float]]:
    # What is evaluated again after training stands in the log under the last step, whatever was loaded meanwhile.
    entries: dict[int, Mapping[str, float]] = {}
    for entry in history:
        if name in entry:
            entries.setdefault(int(entry["step"]), entry)
    return entries


def predicted_results(trainer: Any, output: Any, dataset: str, split: str, how: str = "") -> Results:
    """Return what `trainer.predict(..., metric_key_prefix=split)` measured, with intervals and chance."""
    model = trainer.speech_clip
    outputs = SplitOutputs.from_predictions(output.predictions, output.label_ids)
    results = evaluate(outputs, model, hit_rate_neighbours=trainer.args.hit_rate_neighbours)
    metrics = {name.removeprefix(f"{split}_"): value for name, value in output.metrics.items()}
    return replace(results, metrics=metrics | results.metrics, dataset=dataset, split=split, how=how)


def history_results(trainer: Any, dataset: str, steps: int | None) -> list[Results]:
    """Return what was evaluated during training of the weights that have seen so many steps; else the last of all."""
    results = []
    for split, (prefix, data) in named_splits(trainer).items():
        entries = [entry for entry in trainer.state.log_history if f"{prefix}utterances" in entry]
        entry = next((entry for entry in entries if entry["step"] == steps), entries[-1] if entries else None)
        if entry is None:
            continue
        ids = stored_column(data, "image_id") if isinstance(data, datasets.Dataset) else None
        results.append(
            Results(
                metrics={name.removeprefix(prefix): value for name, value in entry.items() if name.startswith(prefix)},
                chance={} if ids is None else chance_recall(ids, ids),
                dataset=dataset_name(data) or dataset or "unnamed data",
                split=split,
                how=f"the training's evaluation at step {entry['step']}",
                retrieval_branch=trainer.speech_clip.config.retrieval_branch,
            )
        )
    return results


def keyword_examples(trainer: Any, data: Any) -> list[Any]:
    """Read the keywords out of a split's first utterances, for `ModelCardFacts`; none if the model has none."""
    model = trainer.speech_clip
    if not model.config.has_cascaded:
        return []
    processor = getattr(trainer.data_collator, "processor", None) or trainer.processing_class
    examples = []
    for row in data.select(range(min(EXAMPLES, len(data)))):
        waveform = load_audio(row["audio"], name=f"audio of {row.get('caption_id', 'an utterance')}")
        inputs = processor(audio=waveform, sampling_rate=SAMPLING_RATE, return_tensors="pt").to(model.device)
        keywords = model.extract_keywords(**inputs, tokenizer=processor, top_k=1)[0]
        examples.append((row.get("text") or "", [(keyword.text, keyword.start, keyword.end) for keyword in keywords]))
    return examples


def named_splits(trainer: Any) -> dict[str, tuple[str, Any]]:
    """What a trainer evaluates on: by name, the prefix of its metrics in the log and the data."""
    data = trainer.eval_dataset
    if isinstance(data, dict):
        return {split: (f"eval_{split}_", part) for split, part in data.items()}
    return {"validation": ("eval_", data)}


def given_name(name: str | Path, data_dir: str | Path | None) -> str:
    """What to call a data set: a corpus or a repository by its name, a folder without what is above it."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) and not Path(name).expanduser().exists():
        return str(name)
    if str(name) in DATASETS:
        return str(name)
    own = Path(data_dir if str(name) == "folder" and data_dir is not None else name).expanduser().resolve().name
    # A folder is no corpus because it is called like one: that would lend it the corpus's licence.
    return f"{own} (folder)" if own in DATASETS else own


def dataset_name(data: Any) -> str | None:
    """What a data set was loaded by."""
    return getattr(getattr(data, "info", None), "dataset_name", None)


def has_audio(data: Any) -> bool:
    """Whether rows hold audio that can be read again."""
    return isinstance(data, datasets.Dataset) and "audio" in data.column_names


def split_size(data: Any) -> SplitSize:
    """Count a split; what it does not tell without reading it all stays open."""
    if not isinstance(data, datasets.Dataset):
        return SplitSize(rows=len(data) if hasattr(data, "__len__") else None)
    counts = {
        column: len(set(stored_column(data, column)) - {"", None}) or None
        for column in ("image_id", "speaker")
        if column in data.column_names
    }
    hours = None
    if has_audio(data):
        try:
            hours = sum(utterance_lengths(data.select_columns(["audio"])["audio"])) / SAMPLING_RATE / 3600
        except ValueError:  # a broken file: whoever reads it says so
            pass
    return SplitSize(rows=len(data), images=counts.get("image_id"), speakers=counts.get("speaker"), hours=hours)
