"""`speechclip-plus train`: train a preset's model on a data set, and evaluate and save the best of it.

Everything can stand in a YAML or JSON file too:

    preset: hybrid_plus-base-flickr8k
    data: flickr8k
    data_dir: /data/flickr8k
    output_dir: runs/first
    training:
      max_steps: 10000

Options of the command line win over the file.
"""

import argparse
import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainerState
from transformers.integrations import get_available_reporting_integrations

from speechclip_plus.atomic_files import finished_folder, write_json, write_text
from speechclip_plus.configuration.configuration_speechclip_plus import SpeechClipPlusConfig
from speechclip_plus.configuration.presets import load_preset
from speechclip_plus.hub_cards.model_card import save_model_card
from speechclip_plus.modeling_speechclip_plus.modeling_speechclip_plus import SpeechClipPlusModel, is_frozen
from speechclip_plus.modeling_speechclip_plus.processing_speechclip_plus import SpeechClipPlusProcessor
from speechclip_plus.trainer.card_data import dataset_name, predicted_results, split_size, trainer_card_facts
from speechclip_plus.trainer.checkpoints import last_complete_checkpoint
from speechclip_plus.trainer.data.load import load_speech_image_dataset
from speechclip_plus.trainer.feature_cache import cache_image_embeddings
from speechclip_plus.trainer.tiny_backbones import tiny_backbone
from speechclip_plus.trainer.trainer_speechclip_plus import SpeechClipPlusTrainer
from speechclip_plus.trainer.training_arguments import SpeechClipPlusTrainingArguments

from .console import data_options

SETTINGS_FILE = "run.yaml"
MODEL_FOLDER = "model"
RESULTS_FILE = "results.json"
DEFAULT_PRESET = "hybrid_plus-base-flickr8k"
SHUFFLED_TOGETHER = 2_000  # rows of a stream; those of parquet files hold the recordings and pictures themselves
_KEYS = ("preset", "data", "data_dir", "data_options", "streaming", "output_dir", "speech", "clip", "training")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML or JSON file with any of these settings")
    parser.add_argument("--preset", help=f"model and hyper-parameters (default: {DEFAULT_PRESET})")
    parser.add_argument("--data", help="data set by name, or a folder (default: what the preset was published on)")
    parser.add_argument("--data-dir", metavar="DIR", help="where the data set's files are")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="option of the data set; may be repeated"
    )
    parser.add_argument(
        "--streaming",
        action="store_true",
        default=None,
        help="read the training data as a stream, each process its own",
    )
    parser.add_argument("--output-dir", metavar="DIR", help="folder for checkpoints, the best model and the results")
    parser.add_argument("--speech", metavar="REPO_OR_DIR", help="speech encoder (default: the preset's)")
    parser.add_argument("--clip", metavar="REPO_OR_DIR", help="CLIP (default: the preset's)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any training argument, such as max_steps=1000; may be given again",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last complete checkpoint in the output folder, if any"
    )


def run(args: argparse.Namespace) -> int:
    """Train; returns the exit code."""
    settings = read_settings(args)
    metrics = train(settings, resume=args.resume)
    if metrics is not None:
        print(f"mean R@10 on the validation split: {metrics['mean_R@10']:.1f} %")
        print(f"model: {Path(settings['output_dir']) / MODEL_FOLDER}")
    return 0


def read_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Join the settings of the file and of the command line, and fill in the defaults.

    Raises:
        ValueError: for a key that does not exist, naming the nearest, or without an output folder.
        OSError: if the file cannot be read.
    """
    file = args.config
    if file is None and args.resume and args.output_dir and (Path(args.output_dir) / SETTINGS_FILE).is_file():
        file = Path(args.output_dir) / SETTINGS_FILE  # a run tells itself how it was started
    settings = _read_file(file) if file is not None else {}
    names = ("preset", "data", "data_dir", "streaming", "output_dir", "speech", "clip")
    settings |= {name: value for name in names if (value := getattr(args, name)) is not None}
    if options := data_options(args.option):
        settings["data_options"] = {**(settings.get("data_options") or {}), **options}
    settings["training"] = {**(settings.get("training") or {}), **_assignments(args.set)}
    _check_names(settings["training"], _training_names(), "training argument")
    if not settings.get("output_dir"):
        raise ValueError("Where shall the run go? Give --output-dir (or output_dir in the file).")
    settings.setdefault("preset", DEFAULT_PRESET)
    settings.setdefault("data", load_preset(settings["preset"])["dataset"])
    return settings


def train(settings: Mapping[str, Any], resume: bool = False) -> dict[str, float] | None:
    """Train, evaluate on the validation split, and save the best model with its processor and a card.

    Args:
        settings: As `read_settings` returns them.
        resume: Go on from the last complete checkpoint, if there is one.

    Returns:
        The metrics of the best model on the validation split; None on all processes but the first, and where the run
        was finished before.

    Raises:
        ValueError: If the output folder holds a run already and `resume` is not given.
    """
    output_dir = Path(settings["output_dir"])
    checkpoint = last_complete_checkpoint(output_dir)
    finished = (output_dir / MODEL_FOLDER).exists()
    if not resume and (checkpoint is not None or finished):
        raise ValueError(f"{output_dir} holds a run already: go on with it (--resume), or name another folder.")
    arguments = _training_arguments(settings)
    _check_reporting(arguments.report_to)
    if checkpoint is not None and finished:
        state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        steps = arguments.max_steps if arguments.max_steps > 0 else state.max_steps
        if state.global_step >= steps:
            print(f"this run is finished ({state.global_step:,} of {steps:,} steps)")
            return None
    trainer = _make_trainer(settings, arguments)
    if trainer.is_world_process_zero():
        output_dir.mkdir(parents=True, exist_ok=True)
        write_text(output_dir / SETTINGS_FILE, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))
        _say_what_is_trained(trainer)
        if resume:
            print(f"going on from {checkpoint}" if checkpoint else "no complete checkpoint: from the beginning")
    trainer.train(resume_from_checkpoint=checkpoint)
    validation = trainer.eval_dataset
    output = trainer.predict(validation, metric_key_prefix="validation")
    if not trainer.is_world_process_zero():
        return None
    measured = predicted_results(
        trainer, output, dataset_name(validation) or "", "validation", how="`speechclip-plus train`"
    )
    with finished_folder(output_dir / MODEL_FOLDER) as work:
        trainer.model.save_pretrained(work)
        trainer.processing_class.save_pretrained(work)
        save_model_card(work, trainer_card_facts(trainer, results=[measured]))
    results = {
        "best_step": trainer.state.best_global_step,
        "split": "validation",
        "metrics": dict(measured.metrics),
        "intervals": measured.intervals,
        "chance": measured.chance,
        "history": trainer.state.log_history,
    }
    write_json(output_dir / RESULTS_FILE, results)
    return results["metrics"]


def _make_trainer(settings: Mapping[str, Any], arguments: SpeechClipPlusTrainingArguments) -> SpeechClipPlusTrainer:
    torch.manual_seed(arguments.seed)
    chosen = {"data_dir": settings.get("data_dir"), **(settings.get("data_options") or {})}
    streaming = bool(settings.get("streaming"))
    with arguments.main_process_first(desc="loading the data"):
        train_split = load_speech_image_dataset(settings["data"], split="train", streaming=streaming, **chosen)
        validation = load_speech_image_dataset(settings["data"], split="validation", **chosen)
    if streaming:  # captions of an image are neighbours
        train_split = train_split.shuffle(seed=arguments.seed, buffer_size=SHUFFLED_TOGETHER)
    model, processor = _build(settings)
    if is_frozen(model.clip):
        model.to(arguments.device)
        with arguments.main_process_first(desc="embedding the images"):
            validation = cache_image_embeddings(model, processor, validation)
            if not streaming:
                train_split = cache_image_embeddings(model, processor, train_split)
    return SpeechClipPlusTrainer(
        model=model,
        args=arguments,
        train_dataset=train_split,
        eval_dataset=validation,
        processing_class=processor,
    )


def _say_what_is_trained(trainer: SpeechClipPlusTrainer) -> None:
    args, model = trainer.args, trainer.speech_clip
    for name, data in (("training", trainer.train_dataset), ("validation", trainer.eval_dataset)):
        size = split_size(data)
        counts = [(size.rows, "{:,} utterances"), (size.images, "{:,} images"), (size.hours, "{:.1f} hours")]
        print(f"{name}: {', '.join(text.format(count) for count, text in counts if count is not None) or 'a stream'}")
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    print(f"model: {model.config.variant}, {trained:,} of {model.num_parameters():,} parameters trained")
    length = f"{args.max_steps:,} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    pairs = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    print(f"{length} of {pairs:,} pairs on {args.device}, evaluated every {args.eval_steps:g} steps", flush=True)


def _training_arguments(settings: Mapping[str, Any]) -> SpeechClipPlusTrainingArguments:
    given = dict(settings["training"])
    steps = given.get("max_steps", load_preset(settings["preset"])["training"]["max_steps"])
    interval = given.get("eval_steps", max(1, min(1000, steps // 10)) if steps > 0 else 1000)
    defaults = {
        "eval_strategy": "steps",
        "eval_steps": interval,
        "save_strategy": "steps",
        "save_steps": interval,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "logging_steps": max(1, min(50, interval)),
    }
    return SpeechClipPlusTrainingArguments.from_preset(
        settings["preset"], output_dir=str(settings["output_dir"]), **{**defaults, **given}
    )


def _check_reporting(names: Sequence[str]) -> None:
    available = get_available_reporting_integrations()
    for name in names:
        if name not in available:
            raise ValueError(
                f"report_to names {name!r}, which is not installed here: `pip install {name}`, or choose from "
                f"{', '.join([*available, 'none'])}."
            )


def _build(settings: Mapping[str, Any]) -> tuple[SpeechClipPlusModel, SpeechClipPlusProcessor]:
    preset = load_preset(settings["preset"])
    config = SpeechClipPlusConfig.from_preset(settings["preset"])
    sources: dict[str, Any] = {}
    revisions: dict[str, Any] = {}
    for name, tiny in (("speech", "hubert"), ("clip", "clip")):
        # The tiny presets' backbones ship with the package, wherever that is.
        recorded = getattr(config, f"{name}_backbone") or {"repo_id": tiny_backbone(tiny), "revision": None}
        given = settings.get(name)
        sources[name] = given or recorded["repo_id"]
        revisions[f"{name}_revision"] = None if given else recorded["revision"]
    # What a preset says of waveforms holds for its own speech encoder.
    waveforms = {} if settings.get("speech") else preset["processor"]
    processor = SpeechClipPlusProcessor.from_backbones(**sources, **revisions, **waveforms)
    return SpeechClipPlusModel.from_backbones(**sources, **revisions, config=config), processor


def _read_file(file: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))  # JSON is YAML
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is neither YAML nor JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{file} must hold settings by name ({', '.join(_KEYS)}), but holds {settings!r:.60}.")
    _check_names(settings, _KEYS, f"setting (in {file})")
    for name in ("training", "data_options"):
        if not isinstance(settings.get(name) or {}, dict):
            raise ValueError(f"{name} in {file} must hold values by name, but is {settings[name]!r:.60}.")
    settings["training"] = {name: _value(value) for name, value in (settings.get("training") or {}).items()}
    return settings


def _assignments(texts: list[str]) -> dict[str, Any]:
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"--set takes KEY=VALUE, for instance max_steps=1000; got {text!r}.")
        values[name.strip()] = _value(yaml.safe_load(value))
    return values


def _value(value: Any) -> Any:
    """Read 1e-4 as a number, which YAML takes for text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _training_names() -> list[str]:
    return [
        field.name
        for field in dataclasses.fields(SpeechClipPlusTrainingArguments)
        if field.init and field.name != "output_dir"
    ]


def _check_names(given: Mapping[str, Any], known: Any, kind: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0)
            raise ValueError(f"There is no {kind} {name!r}. The nearest is {near[0]!r}.")
