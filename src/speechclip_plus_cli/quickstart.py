"""Quickstart: make spoken scenes, train a tiny model within a time budget, evaluate it and write a report."""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .console import QUICKSTART_MODEL, Console, positive, quiet_libraries

PRESET = "hybrid_plus-tiny"
DATASET = "spoken_scenes"
REFERENCE_MINUTES = 13.0  # the budget that the defaults below were chosen for, on 2 cores
TRAIN_SCENES, STEPS = 8000, 1500
MIN_STEPS = 20
RESERVED_SECONDS = 75.0  # for the evaluation and the report
# Percentage points by which a metric may differ between the trained model and the saved one in another process.
TOLERANCE = 0.5


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
        help="time for everything; the amount of data and the number of steps follow from it (default: 13)",
    )
    parser.add_argument("--train-scenes", type=positive, help="images to train on, each with a spoken caption")
    parser.add_argument("--eval-scenes", type=positive, default=500, help="test and validation images (default: 500)")
    parser.add_argument("--steps", type=positive, help="training steps at most")


@dataclass(frozen=True)
class Plan:
    """Sizes of the data and of the training, scaled to a time budget.

    Attributes:
        minutes: Time budget of the whole quickstart.
        seed: Seed of the data, the initial weights and the order of training.
        train_scenes: Images to train on, one spoken caption each.
        eval_scenes: Images of the validation and of the test split.
        steps: Training steps, if the machine is fast enough for them.
    """

    minutes: float
    seed: int
    train_scenes: int
    eval_scenes: int
    steps: int

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> "Plan":
        """Scale what was not given to the time budget.

        Raises:
            ValueError: If the budget is below a minute.
        """
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
        """Return how many of the planned steps fit into the time that is left, at least a few.

        Args:
            seconds: Time until the budget ends.
            seconds_per_step: As measured on this machine.
        """
        # Evaluations take time as well, and a machine may slow down: a tenth is kept back.
        fitting = int(0.9 * (seconds - RESERVED_SECONDS) / seconds_per_step)
        return min(self.steps, max(MIN_STEPS, fitting))


def run(args: argparse.Namespace) -> int:
    """Run the quickstart.

    Raises:
        ValueError, OSError: If the arguments or the folder cannot be used; nothing is left behind then.
    """
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

    from .quickstart_training import train

    check_new_folder(args.output_dir, force=True)  # of an earlier quickstart, and nothing else
    quiet_libraries()
    with finished_folder(args.output_dir) as work:
        trained = train(plan, PRESET, DATASET, work / "model", console)
        console.phase("evaluation", "4. loading the model in a new process and evaluating it")
        results = _evaluate_in_new_process(plan, work)
        _check_same(trained.pop("metrics"), results["metrics"])
        trained["seconds"] = {**console.phase_seconds, "total": round(console.seconds, 1)}
        write_json(work / "results.json", {**results, **trained})
    console.say(f"took {console.seconds / 60:.1f} of {plan.minutes:g} minutes")
    console.say(f"Done. Open {args.output_dir / 'report.html'} in a browser; the model is in {args.output_dir}/model.")
    console.say(f"Next: `speechclip-plus demo --model {args.output_dir}` answers what you say, in the browser.")
    return 0


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
    """Check that the saved model measures as the trained one did.

    Raises:
        ValueError: If it does not.
    """
    for name in trained.keys() & saved.keys():
        if not abs(trained[name] - saved[name]) <= TOLERANCE:
            raise ValueError(
                f"The saved model is not the trained one: {name} was {trained[name]:g} in training and is "
                f"{saved[name]:g} after loading."
            )
