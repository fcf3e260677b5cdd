"""Quickstart: make spoken scenes, train a tiny model within a time budget, evaluate it and write a report."""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import QUICKSTART_MODEL, Console, positive, quiet_libraries

if TYPE_CHECKING:
    from speechclip_plus import SpeechClipPlusModel, SpeechClipPlusProcessor, SpeechClipPlusTrainer

PRESET = "hybrid_plus-tiny"
DATASET = "spoken_scenes"
REFERENCE_MINUTES = 8.0  # the budget that the defaults below were chosen for, on 2 cores
TRAIN_SCENES, STEPS = 5000, 1500
MIN_STEPS = 20
RESERVED_SECONDS = 40.0  # for the evaluation and the report
BATCH_SIZE = 128
LEARNING_RATE = 1e-3
WARMUP_SHARE, SCALED_SHARE = 0.06, 0.3  # of the steps: with a rising learning rate; with CIF scaled to its target
EVALUATIONS = 6
TIMED_STEPS = 8
# Percentage points by which a metric may differ between the trained model and the saved one in another process.
TOLERANCE = 0.5
LIMITS = (
    "A model to try things out with. It knows drawn scenes of two objects and synthetic English voices; it does not "
    "understand people or photographs."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the quickstart's arguments to a parser."""
    parser.add_argument(
        "--output-dir", type=Path, default=QUICKSTART_MODEL.parent, help="folder (default: quickstart)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the data and the training (default: 0)")
    parser.add_argument(
        "--time-budget-minutes",
        type=float,
        default=REFERENCE_MINUTES,
        help="time for everything; the amount of data and the number of steps follow from it (default: 8)",
    )
    parser.add_argument("--train-scenes", type=positive, help="images to train on, each with a spoken caption")
    parser.add_argument("--eval-scenes", type=positive, default=500, help="test and validation images (default: 500)")
    parser.add_argument("--steps", type=positive, help="training steps at most")


@dataclass(frozen=True)
class Plan:
    """Sizes of the data and of the training, scaled to a time budget."""

    minutes: float  # of the whole quickstart
    seed: int
    train_scenes: int  # with one spoken caption each
    eval_scenes: int  # of the validation and of the test split
    steps: int  # if the machine is fast enough for them

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Plan:
        """Scale what was not given to the time budget, which must be at least a minute."""
        minutes = args.time_budget_minutes
        if not (math.isfinite(minutes) and minutes >= 1):
            raise ValueError(f"--time-budget-minutes must be at least 1; got {minutes:g}.")
        share = min(minutes / REFERENCE_MINUTES, 4.0)
        return cls(
            minutes=minutes,
            seed=args.seed,
            train_scenes=args.train_scenes or max(200, round(TRAIN_SCENES * share)),
            eval_scenes=args.eval_scenes,
            steps=args.steps or max(MIN_STEPS, round(STEPS * share)),
        )

    def steps_within(self, seconds: float, seconds_per_step: float) -> int:
        """Return how many of the planned steps fit into the time that is left, at least a few."""
        # Evaluations take time as well, and a machine may slow down: a tenth is kept back.
        fitting = int(0.9 * (seconds - RESERVED_SECONDS) / seconds_per_step)
        return min(self.steps, max(MIN_STEPS, fitting))


def run(args: argparse.Namespace) -> int:
    """Run the quickstart; where the arguments or the folder cannot be used nothing is left behind."""
    plan = Plan.from_arguments(args)
    console = Console()
    console.say(f"Time budget: {plan.minutes:g} minutes in all on {os.cpu_count()} processors. The plan:")
    console.say(
        f"  1. make {plan.train_scenes:,} images with spoken captions, and {plan.eval_scenes} each to validate"
    )
    console.say("     and to test, in voices of their own")
    console.say("  2. run the frozen tiny HuBERT and the frozen tiny CLIP over them once")
    console.say(f"  3. train hybrid_plus: up to {plan.steps:,} steps, as the time allows; save the model")
    console.say(f"  4. load it in a new process, evaluate it, write {args.output_dir / 'report.html'}")
    # From here on PyTorch and transformers are needed, which take seconds to import.
    from speechclip_plus.atomic_files import check_new_folder, finished_folder, write_json

    check_new_folder(args.output_dir, force=True)  # of an earlier quickstart, and nothing else
    quiet_libraries()
    with finished_folder(args.output_dir) as work:
        trained = _train(plan, work / "model", console)
        console.phase("evaluation", "4. loading the model in a new process and evaluating it")
        results = _evaluate_in_new_process(plan, work)
        _check_same(trained.pop("metrics"), results["metrics"])
        trained["seconds"] = {**console.phase_seconds, "total": round(console.seconds, 1)}
        write_json(work / "results.json", {**results, **trained})
    console.say(f"took {console.seconds / 60:.1f} of {plan.minutes:g} minutes")
    console.say(f"Done. Open {args.output_dir / 'report.html'} in a browser; the model is in {args.output_dir}/model.")
    console.say(f"Next: `speechclip-plus demo --model {args.output_dir}` answers what you say, in the browser.")
    return 0


def _train(plan: Plan, folder: Path, console: Console) -> dict[str, Any]:
    """Train a model and save it with its processor and card, and samples to try it with beside it.

    Returns:
        `metrics` of the test split, `training` (steps, seconds, sizes) and `history`, the trainer's log.
    """
    import torch

    from speechclip_plus import load_speech_image_dataset
    from speechclip_plus.hub_cards.cards import save_model_card
    from speechclip_plus.trainer.card_data import trainer_card_facts
    from speechclip_plus.trainer.feature_cache import cache_features
    from speechclip_plus.trainer.training_log import ProgressPrinter

    torch.manual_seed(plan.seed)
    console.phase("data", "1. making the data")
    sizes = {"train": plan.train_scenes, "validation": plan.eval_scenes, "test": plan.eval_scenes}
    splits = {
        name: load_speech_image_dataset(DATASET, split=name, seed=plan.seed, num_scenes=scenes)
        for name, scenes in sizes.items()
    }
    for name, split in splits.items():
        console.say(f"  {name}: {len(split):,} utterances in {len(set(split['speaker']))} voices")

    console.phase("features", "2. running the frozen encoders")
    model, processor = _build_model(splits["train"]["text"])
    cache, features = folder.parent / "features", {}
    for name in ("train", "validation"):
        with console.bar(len(splits[name]), name, "utterance") as bar:
            features[name] = cache_features(model, processor, splits[name], cache, progress=bar.update)
        console.say(f"  {name}: hidden states of {len(splits[name]):,} utterances")

    # With a copy of the model, so that the run that counts starts from untouched weights.
    trial = copy.deepcopy(model)
    timed = _make_trainer(trial, processor, features, plan.seed, folder, TIMED_STEPS, eval_strategy="no")
    seconds_per_step = timed.train().metrics["train_runtime"] / TIMED_STEPS
    steps = plan.steps_within(plan.minutes * 60 - console.seconds, seconds_per_step)
    if steps < plan.steps:
        console.say(f"  at {seconds_per_step:.2f} seconds a step there is time for {steps:,} of {plan.steps:,} steps")
    console.phase("training", f"3. training: {steps:,} steps of {BATCH_SIZE} pairs")
    model.config.cif_config.scale_until_step = round(SCALED_SHARE * steps)
    trainer = _make_trainer(model, processor, features, plan.seed, folder, steps)
    trainer.add_callback(ProgressPrinter(console.say, console.bar))
    seconds = trainer.train().metrics["train_runtime"]

    metrics = trainer.evaluate(splits["test"], metric_key_prefix="test")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    trainer.state.save_to_json(str(folder / "trainer_state.json"))
    name = f"{model.config.model_variant}-tiny-{DATASET}"
    facts = {"name": name, "dataset": DATASET, "languages": ("en",), "license": "mit", "limits": LIMITS}
    save_model_card(folder, trainer_card_facts(trainer, **facts))
    _write_samples(splits["test"], folder.parent)
    shutil.rmtree(cache)
    return {
        "metrics": {name.removeprefix("test_"): value for name, value in metrics.items()},
        "training": {"steps": trainer.state.global_step, "seconds": round(seconds, 1), "batch_size": BATCH_SIZE},
        "history": trainer.state.log_history,
    }


def _build_model(captions: Sequence[str]) -> tuple[SpeechClipPlusModel, SpeechClipPlusProcessor]:
    from speechclip_plus import SpeechClipPlusConfig, SpeechClipPlusModel, SpeechClipPlusProcessor
    from speechclip_plus.trainer.tiny_backbones import tiny_backbone

    speech, clip = tiny_backbone("hubert"), tiny_backbone("clip")
    processor = SpeechClipPlusProcessor.from_backbones(speech, clip)
    # As published: keywords are the tokens that occur in the data set's captions, and the captions serve for nothing
    # else in training.
    tokens = processor.tokenizer(list(captions), add_special_tokens=False)["input_ids"]
    vocabulary = [token for token, _ in Counter(chain.from_iterable(tokens)).most_common()]
    # Without dropout in the attention torch has a fused kernel for CPUs, and a step takes a third of the time.
    config = SpeechClipPlusConfig.from_preset(
        PRESET,
        branch_config={"dropout": 0.0},
        keyword_config={"vocabulary_ids": vocabulary, "merge_repeats": True},
        # Merged repeats and what follows are not as published: docs/keywords.md measures what each does.
        cif_config={"segmentation": "feature_change", "frames_per_keyword": 16},
        loss_config={"expected_weight": 2.0},
    )
    return SpeechClipPlusModel.from_backbones(speech=speech, clip=clip, config=config), processor


def _make_trainer(
    model: SpeechClipPlusModel,
    processor: Any,
    features: dict[str, Any],
    seed: int,
    folder: Path,
    steps: int,
    **arguments: Any,
) -> SpeechClipPlusTrainer:
    from transformers import PrinterCallback

    from speechclip_plus import SpeechClipPlusTrainer, SpeechClipPlusTrainingArguments, SpeechImageCollator

    defaults = {
        "max_steps": steps,
        "warmup_steps": max(1, round(WARMUP_SHARE * steps)),
        "learning_rate": LEARNING_RATE,
        "per_device_train_batch_size": BATCH_SIZE,
        "logging_steps": max(1, steps // 30),
        "eval_strategy": "steps",
        "eval_steps": max(1, steps // EVALUATIONS),
        "save_strategy": "no",
        "train_sampling_strategy": "group_by_length",
        "dataloader_drop_last": len(features["train"]) > BATCH_SIZE,
        "seed": seed,
        "report_to": "none",
        "disable_tqdm": True,
    }
    trainer = SpeechClipPlusTrainer(
        model=model,
        args=SpeechClipPlusTrainingArguments.from_preset(PRESET, output_dir=str(folder), **{**defaults, **arguments}),
        data_collator=SpeechImageCollator(processor),
        train_dataset=features["train"],
        eval_dataset=features["validation"],
    )
    trainer.remove_callback(PrinterCallback)  # which prints dictionaries of forty figures
    return trainer


def _write_samples(test: Any, folder: Path) -> None:
    """Leave an utterance, the image that it describes and another one, to try things out with."""
    import soundfile

    from speechclip_plus.modeling_speechclip_plus.audio_utils import SAMPLING_RATE, load_audio
    from speechclip_plus.modeling_speechclip_plus.image_utils import load_image

    row, image_ids = test[0], list(test["image_id"])
    other = next((place for place, image_id in enumerate(image_ids) if image_id != image_ids[0]), 0)
    soundfile.write(folder / "query.wav", load_audio(row["audio"], name="query"), SAMPLING_RATE)
    load_image(row["image"], name="first").save(folder / "first.png")
    load_image(test[other]["image"], name="second").save(folder / "second.png")


def _evaluate_in_new_process(plan: Plan, work: Path) -> dict[str, Any]:
    """Run `speechclip-plus evaluate` on the saved model; leaves `report.html` and returns the results."""
    folder = work / "evaluation"
    command = [sys.executable, "-m", __package__, "evaluate", "model", "--data", DATASET]
    command += ["--option", f"num_scenes={plan.eval_scenes}", "--option", f"seed={plan.seed}"]
    command += ["--output-dir", folder.name, "--update-card"]
    if (code := subprocess.run(command, cwd=work, check=False).returncode) != 0:
        raise ValueError(f"The evaluation of the saved model failed (exit code {code}); its error stands above.")
    (folder / "report.html").rename(work / "report.html")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    shutil.rmtree(folder)
    return results


def _check_same(trained: dict[str, float], saved: dict[str, float]) -> None:
    """Check that the saved model measures as the trained one did."""
    for name in trained.keys() & saved.keys():
        if not abs(trained[name] - saved[name]) <= TOLERANCE:
            raise ValueError(
                f"The saved model is not the trained one: {name} was {trained[name]:g} in training and is "
                f"{saved[name]:g} after loading."
            )
