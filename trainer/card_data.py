"""What a training run tells for its model card."""

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..hub_cards.charts import Series
from ..hub_cards.known_sources import TINY_BACKBONES, Source
from ..hub_cards.model_card import ModelCardFacts, config_backbones
from ..modeling_speechclip_plus.audio_utils import SAMPLING_RATE
from .card_results import history_results, keyword_examples, named_splits
from .data_facts import dataset_name, has_audio, split_size, spoken_languages
from .frozen_features import FrozenFeatures
from .tiny_backbones import tiny_backbone
from .training_meter import ENERGY_SOURCE, TrainingMeter

_LOSSES = {
    "loss": "total",
    "parallel_loss": "parallel",
    "cascaded_loss": "cascaded",
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
    "keywords_per_utterance": "keywords per recording",
}


def trainer_card_facts(trainer: Any, **given: Any) -> ModelCardFacts:
    """Gather what a `SpeechClipPlusTrainer` knows of its model, at any time of the training.

    Before the first evaluation there are no results, and the card has no such section.

    Args:
        trainer: the trainer.
        **given: fields of `ModelCardFacts` that take the place of what was gathered, such as `name`, `license`,
            `languages` or `results`.

    Raises:
        TypeError: if there is no such field.
    """
    model, args, state = trainer.accelerator.unwrap_model(trainer.model), trainer.args, trainer.state
    evaluated = named_splits(trainer)
    prefix = next(iter(evaluated.values()))[0]  # the first is watched in training
    splits = {"train": trainer.train_dataset, **{split: data for split, (_, data) in evaluated.items()}}
    name = next((name for split in splits.values() if (name := dataset_name(split))), "")
    steps = _steps_of_weights(trainer)
    facts = ModelCardFacts(
        name=args.hub_model_id or Path(args.output_dir).resolve().name,
        config=model.config,
        parameters={
            "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "frozen": sum(p.numel() for p in model.parameters() if not p.requires_grad),
        },
        backbones=_backbones(model.config),
        dataset=name,
        languages=spoken_languages(name, splits["train"]),
        hyperparameters=_hyperparameters(trainer),
        steps=steps,
        best_step=state.best_global_step,
        best_metric=(args.metric_for_best_model or "").removeprefix("eval_"),
        hardware=_hardware(args),
    )
    if "progress" not in given:
        facts.progress = _progress(state.log_history, prefix)
    if "curves" not in given:
        facts.curves = training_curves(state.log_history, prefix)
    if "splits" not in given:
        facts.splits = {split: split_size(data) for split, data in splits.items() if data is not None}
    if "results" not in given:
        facts.results = history_results(trainer, name, steps)
    if "examples" not in given:
        split, data = next(((s, d) for s, d in splits.items() if s != "train" and has_audio(d)), ("", None))
        facts.examples = keyword_examples(trainer, data) if data is not None else []
        facts.examples_split = split
    meter = next((c for c in trainer.callback_handler.callbacks if isinstance(c, TrainingMeter)), None)
    if meter is not None and state.global_step > 0:
        counted = meter.state()["attributes"]
        facts.seconds = counted["seconds"]
        if counted["joules"] is not None:
            facts.energy_kwh, facts.energy_source = counted["joules"] / 3.6e6, ENERGY_SOURCE
    return replace(facts, **given)


def training_curves(history: Sequence[Mapping[str, float]], prefix: str = "eval_") -> dict[str, dict[str, Series]]:
    """Losses and recalls over the steps, for the card's picture.

    Args:
        history: the trainer's log.
        prefix: of the names of what was evaluated.
    """
    losses = {title: _curve(history, name) for name, title in _LOSSES.items()}
    losses["validation"] = _curve(history, f"{prefix}loss")
    recalls = {title: _curve(history, f"{prefix}{name}") for name, title in _RECALLS.items()}
    panels = {"Loss": losses, "Recall on the validation split": recalls}
    return {title: {name: curve for name, curve in curves.items() if curve[0]} for title, curves in panels.items()}


def _backbones(config: Any) -> dict[str, Source]:
    found = config_backbones(config)
    for title, source, name, kind in (
        ("speech encoder", config.speech_backbone, "hubert", "speech"),
        ("CLIP", config.clip_backbone, "clip", "clip"),
    ):
        if source and Path(source["repo_id"]) == Path(tiny_backbone(name)):
            found[title] = TINY_BACKBONES[kind]
    return found


def _hyperparameters(trainer: Any) -> dict[str, Any]:
    args, state = trainer.args, trainer.state
    total = state.max_steps if state.max_steps > 0 else args.max_steps
    processes, accumulated = args.world_size, args.gradient_accumulation_steps
    pairs = args.train_batch_size * processes
    batch = f"{pairs} pairs, all negatives of each other"
    if processes > 1:
        batch += f" ({args.train_batch_size} on each of {processes} processes)"
    if accumulated > 1:
        batch += f"; {accumulated} such batches a step"
    if args.optimizer == "adam":
        optimizer = f"Adam, betas {args.adam_beta1:g} and {args.adam_beta2:g}, L2 {args.weight_decay:g}"
    else:
        optimizer = f"{getattr(args.optim, 'value', args.optim)}, weight decay {args.weight_decay:g}"
    if args.schedule == "warmup_decay":
        schedule = f"linear to {args.final_learning_rate:g}"
    else:
        schedule = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    found = {"batch": batch}
    if state.global_step:
        found["steps"] = f"{state.global_step:,} of {total:,}" if state.global_step < total else f"{total:,}"
        if state.epoch is not None:
            found["epochs"] = f"{state.epoch:.2f}"
    elif total > 0:
        found["steps"] = f"none yet of {total:,}"
    warmup = args.get_warmup_steps(total) if total > 0 else args.warmup_steps
    found |= {
        "optimiser": optimizer,
        "learning rate": f"{args.learning_rate:g}, warm-up {warmup:g} steps, then {schedule}",
        "gradients clipped to": f"norm {args.max_grad_norm:g}",
        "longest utterance": (
            "not cropped"
            if args.max_audio_samples is None
            else f"{args.max_audio_samples / SAMPLING_RATE:g} s, longer ones cropped at a random place"
        ),
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "seed": args.seed,
    }
    if isinstance(trainer.train_dataset, FrozenFeatures):
        found["frozen encoders"] = "run once before the training, which read what they gave (never cropped)"
        del found["longest utterance"]
    return found


def _hardware(args: Any) -> str:
    if args.device.type == "cuda":
        return f"{args.world_size} x {torch.cuda.get_device_name(args.device)}"
    processor = _processor_name()
    threads = f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    return f"{args.device.type.upper()}: {processor}, {threads}" + (
        f" in each of {args.world_size} processes" if args.world_size > 1 else ""
    )


def _processor_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _steps_of_weights(trainer: Any) -> int | None:
    """How many steps the model's weights have seen: at the end they may be an earlier, better checkpoint's."""
    state = trainer.state
    if trainer.args.load_best_model_at_end and not trainer.is_in_train and state.best_global_step:
        return state.best_global_step
    return state.global_step or None


def _progress(history: Sequence[Mapping[str, float]], prefix: str) -> list[dict[str, Any]]:
    rows: dict[float, dict[str, Any]] = {}
    for entry in history:
        found = {title: entry[prefix + name] for name, title in _PROGRESS.items() if prefix + name in entry}
        # What is evaluated again after training stands in the log under the last step, whatever was loaded meanwhile.
        if found and entry["step"] not in rows:
            rows[entry["step"]] = {"step": entry["step"], **found}
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    return [row for row in rows.values() if list(row) == columns]


def _curve(history: Sequence[Mapping[str, float]], name: str) -> Series:
    found: dict[int, float] = {}
    for entry in history:
        if name in entry:
            found.setdefault(int(entry["step"]), entry[name])
    return list(found), list(found.values())
