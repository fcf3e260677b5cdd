"""The quickstart's training: data, frozen features, the Trainer, evaluation on unseen scenes, the saved model."""

import copy
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from speechclip_plus.configuration.configuration_speechclip_plus import SpeechClipPlusConfig
from speechclip_plus.hub_cards.model_card import save_model_card
from speechclip_plus.hub_cards.versions import versions
from speechclip_plus.modeling_speechclip_plus.modeling_speechclip_plus import SpeechClipPlusModel
from speechclip_plus.modeling_speechclip_plus.processing_speechclip_plus import SpeechClipPlusProcessor
from speechclip_plus.trainer.card_data import keyword_examples, predicted_results, split_size, trainer_card_facts
from speechclip_plus.trainer.collator import SpeechImageCollator
from speechclip_plus.trainer.data.load import load_speech_image_dataset
from speechclip_plus.trainer.evaluation.evaluate import join_batches
from speechclip_plus.trainer.feature_cache import cache_features
from speechclip_plus.trainer.sampler import LengthGroupedBatches, stored_column
from speechclip_plus.trainer.tiny_backbones import tiny_backbone
from speechclip_plus.trainer.trainer_speechclip_plus import SpeechClipPlusTrainer
from speechclip_plus.trainer.training_arguments import SpeechClipPlusTrainingArguments

from ..console import Console, ProgressPrinter, format_table
from .plan import Plan
from .report import score_tables

DATASET = "spoken_scenes"
FEATURES = "features"
_TIMED_STEPS = 8


def train_and_evaluate(plan: Plan, preset: str, work: Path, model_folder: str, console: Console) -> dict[str, Any]:
    """Run the training part of the quickstart.

    Args:
        plan: sizes.
        preset: the model's and the training's other settings.
        work: folder for the saved model and `expected.safetensors`, the test split's embeddings.
        model_folder: the model's folder in it.
        console: where to tell what happens.

    Returns:
        What `results.json` holds: data, training, history, test metrics, chance.
    """
    torch.manual_seed(plan.seed)
    console.phase("data", "1. making the data")
    splits = _load_splits(plan)
    for name, split in splits.items():
        console.say(f"  {name}: {len(split):,} recordings in {len(set(split['speaker']))} voices")

    console.phase("features", "2. running the frozen encoders")
    model, processor = _build_model(preset, splits["train"]["text"])
    counts, sizes = _counts(splits), {name: split_size(split) for name, split in splits.items()}
    # The data sets are let go as soon as their features are there.
    train = _features(model, processor, splits.pop("train"), "train", work, console)
    validation = _features(model, processor, splits.pop("validation"), "validation", work, console)

    trainer = _make_trainer(model, processor, train, validation, plan, preset, work, console)
    console.phase("training", f"3. training: {trainer.args.max_steps:,} steps of {plan.batch_size} pairs")
    started = time.monotonic()
    trainer.train()
    training_seconds = time.monotonic() - started

    console.phase("evaluation", f"4. evaluating on {len(splits['test'])} recordings of unseen scenes in unseen voices")
    output = trainer.predict(splits["test"], metric_key_prefix="test")
    measured = predicted_results(trainer, output, DATASET, "test", how="`speechclip-plus quickstart`")
    metrics, chance = dict(measured.metrics), dict(measured.chance)
    for table in score_tables(metrics, chance):
        console.say(f"  {table.caption}:")
        rows = [(row.name, row.cells) for row in table.rows]
        rows += [(f"guessing,{row.name.partition(',')[2]}", row.chance) for row in table.rows[:2] if row.chance]
        print(format_table(table.columns, rows), flush=True)

    shutil.rmtree(trainer.args.output_dir, ignore_errors=True)  # nothing is kept there: there are no checkpoints
    shutil.rmtree(work / FEATURES)
    _save_expected(work / "expected.safetensors", output.predictions, splits["test"]["image_id"])
    results = {
        "package_version": versions()["speechclip-plus"],
        "versions": versions(),
        "seed": plan.seed,
        "variant": model.config.variant,
        "plan": plan.to_dict(),
        "data": counts,
        "training": {
            "steps": trainer.state.global_step,
            "seconds": round(training_seconds, 1),
            "batch_size": plan.batch_size,
            "learning_rate": trainer.args.learning_rate,
            "warmup_steps": trainer.args.get_warmup_steps(trainer.args.max_steps),
            "scale_until_step": model.config.cif_config.scale_until_step,
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "frozen_parameters": sum(p.numel() for p in model.parameters() if not p.requires_grad),
        },
        "history": _history(trainer.state.log_history),
        "test": metrics,
        "intervals": dict(measured.intervals),
        "chance": chance,
    }
    model.save_pretrained(work / model_folder)
    processor.save_pretrained(work / model_folder)
    facts = trainer_card_facts(
        trainer,
        name=f"{model.config.variant}-tiny-{DATASET}",
        dataset=DATASET,
        languages=("en",),
        license="mit",
        splits=sizes,
        results=[measured],
        examples=keyword_examples(trainer, splits["test"]),
        examples_split="test",
        limits=(
            "A model to try things out with. It knows drawn scenes of two objects and synthetic English voices; it "
            "does not understand people or photographs."
        ),
    )
    save_model_card(work / model_folder, facts)
    return results


def _load_splits(plan: Plan) -> dict[str, Any]:
    sizes: dict[str, dict[str, Any]] = {
        "train": {"num_scenes": plan.train_scenes, "captions_per_scene": plan.captions_per_scene},
        "validation": {"num_scenes": plan.eval_scenes},
        "test": {"num_scenes": plan.eval_scenes},
    }
    return {
        name: load_speech_image_dataset(DATASET, split=name, seed=plan.seed, **size) for name, size in sizes.items()
    }


def _build_model(preset: str, captions: Sequence[str]) -> tuple[SpeechClipPlusModel, SpeechClipPlusProcessor]:
    speech, clip = tiny_backbone("hubert"), tiny_backbone("clip")
    processor = SpeechClipPlusProcessor.from_backbones(speech, clip)
    # As published: keywords are the subwords that occur in the data set's captions, and the captions serve for
    # nothing else in training.
    subwords = processor.tokenizer(list(captions), add_special_tokens=False)["input_ids"]
    vocabulary = [subword for subword, _ in Counter(chain.from_iterable(subwords)).most_common()]
    # Without dropout in the attention torch has a fused kernel for CPUs, and a step takes a third of the time.
    config = SpeechClipPlusConfig.from_preset(
        preset, branch_config={"dropout": 0.0}, keyword_config={"vocabulary_ids": vocabulary}
    )
    model = SpeechClipPlusModel.from_backbones(speech=speech, clip=clip, config=config)
    return model, processor


def _features(model: SpeechClipPlusModel, processor: Any, split: Any, name: str, work: Path, console: Console) -> Any:
    with console.bar(len(split), name, "recording") as bar:
        features = cache_features(
            model, processor, split, work / FEATURES, progress=lambda done, _: bar.update(done - bar.n)
        )
    console.say(f"  {name}: hidden states of {len(split):,} recordings")
    return features


def _make_trainer(
    model: SpeechClipPlusModel,
    processor: Any,
    train: Any,
    validation: Any,
    plan: Plan,
    preset: str,
    work: Path,
    console: Console,
) -> SpeechClipPlusTrainer:
    seconds_per_step = _seconds_per_step(model, processor, train, plan)
    steps = plan.steps_within(plan.minutes * 60 - console.seconds, seconds_per_step)
    if steps < plan.steps:
        console.say(f"  at {seconds_per_step:.2f} seconds a step there is time for {steps:,} of {plan.steps:,} steps")
    model.config.cif_config.scale_until_step = round(plan.scaled_share * steps)
    arguments = SpeechClipPlusTrainingArguments.from_preset(
        preset,
        output_dir=str(work / "trainer"),
        max_steps=steps,
        warmup_steps=max(1, round(plan.warmup_share * steps)),
        learning_rate=plan.learning_rate,
        per_device_train_batch_size=plan.batch_size,
        logging_steps=max(1, steps // 30),
        eval_strategy="steps",
        eval_steps=max(1, steps // plan.evaluations),
        save_strategy="no",
        train_sampling_strategy="group_by_length",
        dataloader_drop_last=len(train) > plan.batch_size,
        seed=plan.seed,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SpeechClipPlusTrainer(
        model=model,
        args=arguments,
        data_collator=SpeechImageCollator(processor),
        train_dataset=train,
        eval_dataset=validation,
        callbacks=[ProgressPrinter(console)],
    )
    trainer.pop_callback(_printer())
    return trainer


def _printer() -> type:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


def _seconds_per_step(model: SpeechClipPlusModel, processor: Any, train: Any, plan: Plan) -> float:
    """Time a few steps with a copy of the model, so that the run that counts starts from untouched weights."""
    state = torch.get_rng_state()
    trial = copy.deepcopy(model).train()
    collate = SpeechImageCollator(processor)
    optimizer = torch.optim.Adam([p for p in trial.parameters() if p.requires_grad])
    size = min(plan.batch_size, len(train))
    # Batches as the training will meet them: how long a step takes depends on the longest utterance.
    order = list(LengthGroupedBatches(stored_column(train, "length"), size, plan.seed))
    times = []
    for start in range(0, size * _TIMED_STEPS, size):
        started = time.monotonic()
        batch = collate([train[order[row % len(train)]] for row in range(start, start + size)])
        batch.pop("gold_subwords", None)
        trial(**batch, return_loss=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.monotonic() - started)
    torch.set_rng_state(state)
    return sum(times[1:]) / len(times[1:])  # without the first, which also allocates


def _save_expected(file: Path, predictions: Any, image_ids: Sequence[int]) -> None:
    """Keep the test split's embeddings, each picture once, for the new process to compare with."""
    batches = predictions if isinstance(predictions, list) else [predictions]
    kept = {
        name: join_batches([batch[name] for batch in batches])
        for name in ("parallel_embeds", "cascaded_embeds", "image_embeds")
    }
    first = {image_id: row for row, image_id in reversed(list(enumerate(image_ids)))}
    kept["image_embeds"] = kept["image_embeds"][sorted(first.values())]
    save_file({name: value.contiguous() for name, value in kept.items()}, file)


def _counts(splits: Mapping[str, Any]) -> dict[str, int]:
    counts = {}
    for name, split in splits.items():
        counts[f"{name}_utterances"] = len(split)
        counts[f"{name}_images"] = len(set(split["image_id"]))
        counts[f"{name}_voices"] = len(set(split["speaker"]))
    return counts


def _history(log: Sequence[Mapping[str, float]]) -> dict[str, dict[str, list[float]]]:
    """Column by column what was logged in training and in validation."""
    train = [entry for entry in log if "loss" in entry]
    validation = [
        {name.removeprefix("eval_"): value for name, value in entry.items()}
        for entry in log
        if "eval_utterances" in entry
    ]
    return {
        name: {key: [entry[key] for entry in entries] for key in (entries[0] if entries else {})}
        for name, entries in (("train", train), ("validation", validation))
    }
