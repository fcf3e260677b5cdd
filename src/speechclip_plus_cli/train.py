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

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from .console import Console, data_options, json_or_text

if TYPE_CHECKING:
    from speechclip_plus import SpeechClipPlusTrainer, SpeechClipPlusTrainingArguments
    from speechclip_plus.hub_cards.results import Results

SETTINGS_FILE = "run.yaml"
MODEL_FOLDER = "model"
RESULTS_FILE = "results.json"
DEFAULT_PRESET = "hybrid_plus-base-flickr8k"
SHUFFLED_TOGETHER = 2_000  # rows of a stream; those of parquet files hold the recordings and images themselves
VALIDATION_SHARE = 0.1  # of the images of a folder that has no validation split
_KEYS = ("preset", "data", "data_dir", "data_options", "streaming", "output_dir", "speech", "clip", "training")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    add = parser.add_argument
    repeated: dict[str, Any] = {"action": "append", "default": [], "metavar": "KEY=VALUE"}
    add("--config", type=Path, metavar="FILE", help="YAML or JSON file with any of these settings")
    add("--preset", help=f"model and hyper-parameters (default: {DEFAULT_PRESET})")
    add("--data", help="data set by name, or a folder (default: what the preset was published on)")
    add("--data-dir", metavar="DIR", help="where the data set's files are")
    add("--option", **repeated, help="option of the data set; may be repeated")
    add("--streaming", action="store_true", default=None, help="read the training data as a stream")
    add("--output-dir", metavar="DIR", help="folder for checkpoints, the best model and the results")
    add("--speech", metavar="REPO_OR_DIR", help="speech encoder (default: the preset's)")
    add("--clip", metavar="REPO_OR_DIR", help="CLIP (default: the preset's)")
    add("--set", **repeated, help="any training argument, such as max_steps=1000; may be repeated")
    add("--resume", action="store_true", help="go on from the last complete checkpoint in the output folder, if any")


def run(args: argparse.Namespace) -> int:
    """Train; returns the exit code."""
    print("loading PyTorch and transformers", flush=True)
    settings = read_settings(args)
    measured = train(settings, resume=args.resume)
    if measured is not None:
        recall, chance = measured.metrics["mean_R@10"], measured.chance["mean_R@10"]
        print(f"mean R@10 on the validation split: {recall:.1f} % (chance {chance:.1f} %)")
        print(f"model: {Path(settings['output_dir']) / MODEL_FOLDER}")
    return 0


def read_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Join the settings of the file and of the command line, and fill in the defaults."""
    from speechclip_plus.configuration.presets import load_preset

    file = args.config
    if file is None and args.resume and args.output_dir and (Path(args.output_dir) / SETTINGS_FILE).is_file():
        file = Path(args.output_dir) / SETTINGS_FILE  # a run tells itself how it was started
    settings = _read_file(file) if file is not None else {}
    names = ("preset", "data", "data_dir", "streaming", "output_dir", "speech", "clip")
    settings |= {name: value for name in names if (value := getattr(args, name)) is not None}
    if options := data_options(args.option):
        settings["data_options"] = {**(settings.get("data_options") or {}), **options}
    settings["training"] = {**(settings.get("training") or {}), **data_options(args.set, "--set")}
    _check_training(settings["training"])
    if not settings.get("output_dir"):
        raise ValueError("Where shall the run go? Give --output-dir (or output_dir in the file).")
    settings.setdefault("preset", DEFAULT_PRESET)
    settings.setdefault("data", load_preset(settings["preset"])["dataset"])
    return settings


def train(settings: dict[str, Any], resume: bool = False) -> Results | None:
    """Train, evaluate on the validation split, and save the best model with its processor and a card.

    Args:
        settings: As `read_settings` returns them.
        resume: Go on from the last complete checkpoint, if there is one.

    Returns:
        What the best model measures on the validation split; None without one, on all processes but the first, and
        where the run was finished before.
    """
    from transformers import TrainerState

    from speechclip_plus.trainer.card_data import dataset_name, predicted_results
    from speechclip_plus.trainer.trainer_speechclip_plus import last_complete_checkpoint

    output_dir = Path(settings["output_dir"])
    checkpoint = last_complete_checkpoint(output_dir)
    finished = (output_dir / MODEL_FOLDER).exists()
    if not resume and (checkpoint is not None or finished):
        raise ValueError(f"{output_dir} holds a run already: go on with it (--resume), or name another folder.")
    arguments = _training_arguments(settings)
    if checkpoint is not None and finished:
        state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        steps = arguments.max_steps if arguments.max_steps > 0 else state.max_steps
        if state.global_step >= steps:
            print(f"this run is finished ({state.global_step:,} of {steps:,} steps)")
            return None
    trainer = _make_trainer(settings, arguments)
    if trainer.is_world_process_zero():
        _write_settings(settings, arguments)
        _say_what_is_trained(trainer)
        if resume:
            print(f"going on from {checkpoint}" if checkpoint else "no complete checkpoint: from the beginning")
    trainer.train(resume_from_checkpoint=checkpoint)
    measured = None
    if trainer.eval_dataset is not None:
        output = trainer.predict(trainer.eval_dataset, metric_key_prefix="validation")
        name = dataset_name(trainer.eval_dataset) or ""
        measured = predicted_results(trainer, output, name, "validation", how="`speechclip-plus train`")
    if not trainer.is_world_process_zero():
        return None
    _save(trainer, measured)
    return measured


def _save(trainer: SpeechClipPlusTrainer, measured: Results | None) -> None:
    from speechclip_plus.atomic_files import finished_folder, write_json
    from speechclip_plus.hub_cards.cards import save_model_card
    from speechclip_plus.trainer.card_data import trainer_card_facts

    output_dir = Path(trainer.args.output_dir)
    with finished_folder(output_dir / MODEL_FOLDER) as work:
        trainer.model.save_pretrained(work)
        trainer.processing_class.save_pretrained(work)
        save_model_card(work, trainer_card_facts(trainer, results=[measured] if measured else []))
    results: dict[str, Any] = {"best_step": trainer.state.best_global_step, "history": trainer.state.log_history}
    if measured is not None:
        results |= {
            "split": "validation",
            "metrics": dict(measured.metrics),
            "intervals": measured.intervals,
            "chance": measured.chance,
        }
    write_json(output_dir / RESULTS_FILE, results)


def _write_settings(settings: Mapping[str, Any], arguments: SpeechClipPlusTrainingArguments) -> None:
    """Write all settings in force, those of the preset and the defaults too."""
    from speechclip_plus.atomic_files import write_text

    # What follows from other arguments is left to follow from them.
    left_out = {"output_dir", "greater_is_better", *(name for name in arguments.to_dict() if name.endswith("_token"))}
    given = {name: value for name, value in arguments.to_dict().items() if name not in left_out and value is not None}
    if "greater_is_better" in settings["training"]:
        given["greater_is_better"] = settings["training"]["greater_is_better"]
    content = json.loads(json.dumps({**settings, "training": given}, default=str))
    Path(arguments.output_dir).mkdir(parents=True, exist_ok=True)
    write_text(Path(arguments.output_dir, SETTINGS_FILE), yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _make_trainer(settings: dict[str, Any], arguments: SpeechClipPlusTrainingArguments) -> SpeechClipPlusTrainer:
    from transformers import PrinterCallback, set_seed

    from speechclip_plus import SpeechClipPlusTrainer
    from speechclip_plus.modeling_speechclip_plus.modeling_speechclip_plus import is_frozen
    from speechclip_plus.trainer.feature_cache import cache_image_embeddings
    from speechclip_plus.trainer.training_log import ProgressPrinter

    set_seed(arguments.seed)
    with arguments.main_process_first(desc="loading the data"):
        train_split, validation = _load_splits(settings, with_validation=arguments.eval_strategy != "no")
    streaming = bool(settings.get("streaming"))
    if streaming:  # captions of an image are neighbours
        train_split = train_split.shuffle(seed=arguments.seed, buffer_size=SHUFFLED_TOGETHER)
    model, processor = _build(settings)
    if is_frozen(model.clip):
        model.to(arguments.device)
        with arguments.main_process_first(desc="embedding the images"):
            if validation is not None:
                validation = cache_image_embeddings(model, processor, validation)
            if not streaming:
                train_split = cache_image_embeddings(model, processor, train_split)
    console = Console()
    trainer = SpeechClipPlusTrainer(
        model=model,
        args=arguments,
        train_dataset=train_split,
        eval_dataset=validation,
        processing_class=processor,
        callbacks=[ProgressPrinter(console.say, console.bar)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _load_splits(settings: dict[str, Any], with_validation: bool) -> tuple[Any, Any]:
    """Load the training and the validation split; of a folder without the latter a share is held out."""
    from speechclip_plus.trainer.data.load import load_speech_image_dataset
    from speechclip_plus.trainer.data.schema import NoSuchSplitError

    options = settings.get("data_options") or {}

    def load(split: str, **more: Any) -> Any:
        chosen = {"data_dir": settings.get("data_dir"), **options, **more}
        return load_speech_image_dataset(settings["data"], split=split, **chosen)

    try:
        validation = load("validation") if with_validation else None
    except NoSuchSplitError as error:
        if not error.divisible:
            raise ValueError(f"{error} Or train without evaluation: --set eval_strategy=no.") from error
        options = settings["data_options"] = {**options, "validation_share": VALIDATION_SHARE}
        validation = load("validation")
        print(
            f"no validation split: {VALIDATION_SHARE:.0%} of the images, by a hash of their paths, are held out "
            f"(--option validation_share={VALIDATION_SHARE}; --set eval_strategy=no trains on all)"
        )
    return load("train", streaming=bool(settings.get("streaming"))), validation


def _say_what_is_trained(trainer: SpeechClipPlusTrainer) -> None:
    from speechclip_plus.trainer.card_data import split_size

    args, model = trainer.args, trainer.speech_clip
    for name, data in (("training", trainer.train_dataset), ("validation", trainer.eval_dataset)):
        if data is not None:
            size = split_size(data)
            counts = [(size.rows, "{:,} utterances"), (size.images, "{:,} images"), (size.hours, "{:.1f} hours")]
            told = [text.format(count) for count, text in counts if count is not None]
            print(f"{name}: {', '.join(told) or 'a stream'}")
    trained = model.num_parameters(only_trainable=True)
    print(f"model: {model.config.model_variant}, {trained:,} of {model.num_parameters():,} parameters trained")
    length = f"{args.max_steps:,} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    pairs = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    evaluated = {"no": "not evaluated", "epoch": "evaluated every epoch"}
    when = evaluated.get(args.eval_strategy.value, f"evaluated every {args.eval_steps or 0:g} steps")
    print(f"{length} of {pairs:,} pairs on {args.device}, {when}", flush=True)


def _training_arguments(settings: Mapping[str, Any]) -> SpeechClipPlusTrainingArguments:
    from speechclip_plus import SpeechClipPlusTrainingArguments
    from speechclip_plus.configuration.presets import load_preset

    given = dict(settings["training"])
    steps = given.get("max_steps", load_preset(settings["preset"])["training"]["max_steps"])
    interval = given.get("eval_steps") or (max(1, min(1000, steps // 10)) if steps > 0 else 1000)
    strategy = given.setdefault("eval_strategy", "steps")
    defaults = {
        "eval_steps": interval,
        "save_strategy": "steps" if strategy == "no" else strategy,
        "save_steps": interval,
        "save_total_limit": 2,
        "load_best_model_at_end": strategy != "no" and given.get("save_strategy") != "no",
        "logging_steps": max(1, min(50, interval)),
        "disable_tqdm": True,  # the command has a bar of its own
    }
    return SpeechClipPlusTrainingArguments.from_preset(
        settings["preset"], output_dir=str(settings["output_dir"]), **{**defaults, **given}
    )


def _build(settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """Build the model and its processor."""
    from speechclip_plus import SpeechClipPlusConfig, SpeechClipPlusModel, SpeechClipPlusProcessor
    from speechclip_plus.configuration.presets import load_preset
    from speechclip_plus.trainer.tiny_backbones import tiny_backbone

    config = SpeechClipPlusConfig.from_preset(settings["preset"])
    sources: dict[str, Any] = {}
    for name, tiny in (("speech", "hubert"), ("clip", "clip")):
        # The tiny presets' backbones ship with the package, wherever that is.
        recorded = getattr(config, f"{name}_backbone") or {"repo_id": tiny_backbone(tiny), "revision": None}
        given = settings.get(name)
        sources[name] = given or recorded["repo_id"]
        sources[f"{name}_revision"] = None if given else recorded["revision"]
    # What a preset says of waveforms holds for its own speech encoder.
    waveforms = {} if settings.get("speech") else load_preset(settings["preset"])["processor"]
    processor = SpeechClipPlusProcessor.from_backbones(**sources, **waveforms)
    return SpeechClipPlusModel.from_backbones(**sources, config=config), processor


def _read_file(file: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))  # JSON is YAML
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is neither YAML nor JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{file} must hold settings by name ({', '.join(_KEYS)}), but holds {settings!r:.60}.")
    _check_names(settings, _KEYS, f"setting (in {file})")
    training = settings["training"] = dict(settings.get("training") or {})
    for name, value in training.items():  # YAML takes 1e-4 for text, and no for false
        if isinstance(value, str):
            training[name] = json_or_text(value)
        elif value is False and name.endswith("_strategy"):
            training[name] = "no"
    return settings


def _check_training(given: Mapping[str, Any]) -> None:
    """Check the names of training arguments, and that numbers and switches are such."""
    from speechclip_plus import SpeechClipPlusTrainingArguments

    fields = {field.name: field for field in dataclasses.fields(SpeechClipPlusTrainingArguments) if field.init}
    del fields["output_dir"]
    _check_names(given, fields, "training argument")
    for name, value in given.items():
        kinds = set(re.findall(r"\w+", str(fields[name].type))) - {"class", "None"}
        if kinds <= {"int", "float"} and (isinstance(value, bool) or not isinstance(value, (int, float, type(None)))):
            raise ValueError(f"The training argument {name} takes a number; got {value!r}.")
        if kinds == {"bool"} and not isinstance(value, (bool, type(None))):
            raise ValueError(f"The training argument {name} takes true or false; got {value!r}.")


def _check_names(given: Mapping[str, Any], known: Any, kind: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0)
            raise ValueError(f"There is no {kind} {name!r}. The nearest is {near[0]!r}.")
