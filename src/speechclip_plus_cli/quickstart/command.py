"""The main job: make data, train a small model, evaluate it, load it back and let it answer queries."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from speechclip_plus.atomic_files import finished_folder, write_json

from ..console import Console, quiet_libraries
from .folder import MADE_BY, RESULTS, check_output_dir
from .plan import REFERENCE_MINUTES, Plan

PRESET = "hybrid_plus-tiny"
MODEL_FOLDER = "model"
REPORT = "report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the quickstart's arguments to a parser."""
    output = parser.add_argument_group("output")
    output.add_argument("--output-dir", type=Path, help="folder to make (default: quickstart; with --model: answers)")
    output.add_argument("--overwrite", action="store_true", help="replace the folder whatever it holds")
    queries = parser.add_argument_group("queries of your own")
    queries.add_argument(
        "--audio", nargs="+", default=[], metavar="WAV", help="recordings, or folders of them, that ask"
    )
    queries.add_argument(
        "--images", nargs="+", default=[], metavar="DIR", help="pictures, or folders of them, to search"
    )
    queries.add_argument(
        "--model", type=Path, metavar="DIR", help="answer with this trained model instead of training"
    )
    plan = parser.add_argument_group("training")
    plan.add_argument("--seed", type=int, default=0, help="of the data and the training (default: 0)")
    plan.add_argument(
        "--time-budget-minutes", type=float, default=REFERENCE_MINUTES, help="scales data and steps (default: 13)"
    )
    plan.add_argument("--train-scenes", type=int, help="pictures to train on")
    plan.add_argument("--captions-per-scene", type=int, help="spoken captions of each")
    plan.add_argument(
        "--eval-scenes", type=int, help="pictures of the validation and of the test split (default: 500)"
    )
    plan.add_argument("--steps", type=int, help="training steps")
    plan.add_argument("--batch-size", type=int, help="pairs per step")
    plan.add_argument("--learning-rate", type=float, help="highest learning rate")


def run(args: argparse.Namespace) -> int:
    """Run the quickstart.

    Returns:
        0, or 1 if the model that was loaded back did not answer.

    Raises:
        ValueError, OSError: for arguments, files or folders that cannot be used; nothing is left behind then.
    """
    console = Console()
    output_dir = args.output_dir or Path("quickstart" if args.model is None else "answers")
    check_output_dir(output_dir, args.overwrite)
    _check_queries(args)
    quiet_libraries()
    if args.model is not None:
        return _answer_only(args, output_dir, console)
    plan = Plan.for_minutes(
        args.time_budget_minutes,
        args.seed,
        train_scenes=args.train_scenes,
        captions_per_scene=args.captions_per_scene,
        eval_scenes=args.eval_scenes,
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
    )
    with finished_folder(output_dir) as work:
        if (code := _train_and_answer(plan, args, work, output_dir, console)) != 0:
            raise ValueError("The model that was loaded back did not answer; see the error above.")
    console.say(f"Done. Open {output_dir / REPORT} in a browser; the model is in {output_dir / MODEL_FOLDER}.")
    console.say(f"Next: `speechclip-plus demo --model {output_dir}` answers what you say, in the browser.")
    return code


def _train_and_answer(plan: Plan, args: argparse.Namespace, work: Path, output_dir: Path, console: Console) -> int:
    console.say(f"Time budget: {plan.minutes:g} minutes in all on {os.cpu_count()} processors. The plan:")
    console.say(f"  1. make {plan.utterances:,} spoken captions of {plan.train_scenes:,} drawn scenes, and")
    console.say(f"     {plan.eval_scenes} scenes each to validate and to test, in voices of their own")
    console.say("  2. run the frozen tiny HuBERT and the frozen tiny CLIP over them once")
    console.say(f"  3. train hybrid_plus: up to {plan.steps:,} steps of {plan.batch_size} pairs, as the time allows")
    console.say("  4. evaluate on the test scenes; save the model")
    console.say(f"  5. load it back in a new process, answer queries, write {output_dir / REPORT}")

    from .training import train_and_evaluate  # torch and transformers: slow to import, so after the plan

    results = train_and_evaluate(plan, PRESET, work, MODEL_FOLDER, console)
    console.phase("answers", "5. loading the model back in a new process and answering")
    results["seconds"] = {**console.phase_seconds, "total": round(console.seconds, 1)}
    write_json(work / RESULTS, {"made_by": MADE_BY, **results})
    code = _answer_in_new_process(args, plan, work)
    (work / "expected.safetensors").unlink(missing_ok=True)
    if code == 0:
        console.say(f"took {console.seconds / 60:.1f} of {plan.minutes:g} minutes, {_peak_memory()}")
    return code


def _answer_in_new_process(args: argparse.Namespace, plan: Plan, work: Path) -> int:
    from .answers import AnswerRequest

    request = AnswerRequest(
        model=str(work / MODEL_FOLDER),
        report=str(work / REPORT),
        audio=args.audio,
        images=args.images,
        eval_scenes=plan.eval_scenes,
        seed=plan.seed,
        results=str(work / RESULTS),
        expected=str(work / "expected.safetensors"),
    )
    file = work / "request.json"
    file.write_text(request.to_json(), encoding="utf-8")
    command = [sys.executable, "-m", f"{__package__}.answers", str(file)]
    code = subprocess.run(command, check=False).returncode
    file.unlink()
    return code


def _answer_only(args: argparse.Namespace, output_dir: Path, console: Console) -> int:
    from .answers import AnswerRequest, answer

    folder = args.model / MODEL_FOLDER if (args.model / MODEL_FOLDER / "config.json").is_file() else args.model
    if not (folder / "config.json").is_file():
        raise ValueError(f"--model {args.model} is no folder of a saved model: it has no config.json.")
    results = next((path for path in (args.model / RESULTS, folder / RESULTS) if path.is_file()), None)
    console.say(f"Answering with the model in {folder}.")
    with finished_folder(output_dir) as work:
        answer(
            AnswerRequest(
                model=str(folder),
                report=str(work / REPORT),
                audio=args.audio,
                images=args.images,
                eval_scenes=args.eval_scenes or 500,
                seed=args.seed,
                results=None if results is None else str(results),
            )
        )
        write_json(work / RESULTS, {"made_by": MADE_BY, "model": str(folder.resolve())})
    console.say(f"Done. Open {output_dir / REPORT} in a browser.")
    return 0


def _check_queries(args: argparse.Namespace) -> None:
    """Look for the user's files now, and not when the training is over."""
    if not (args.audio or args.images):
        return
    from speechclip_plus.modeling_speechclip_plus.audio_utils import load_audio
    from speechclip_plus.modeling_speechclip_plus.image_utils import load_image
    from speechclip_plus.modeling_speechclip_plus.input_paths import AUDIO_SUFFIXES, IMAGE_SUFFIXES, list_files

    for file in list_files(args.audio, AUDIO_SUFFIXES, "recording"):
        load_audio(file, name="recording")
    for file in list_files(args.images, IMAGE_SUFFIXES, "picture"):
        load_image(file, name="picture")


def _peak_memory() -> str:
    """Highest resident memory of this process or of one that it started."""
    try:
        import resource
    except ImportError:  # Windows does not tell
        return "an unknown amount of memory"
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux kilobytes
    return f"at most {max(resource.getrusage(kind).ru_maxrss for kind in kinds) / unit:.0f} MB of memory"
