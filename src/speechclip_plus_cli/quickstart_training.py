"""Training of the quickstart: data, frozen features, as many steps as the time allows, the saved model."""

import copy
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import soundfile
import torch
from transformers import PrinterCallback

from speechclip_plus import (
    SpeechClipPlusConfig,
    SpeechClipPlusModel,
    SpeechClipPlusProcessor,
    SpeechClipPlusTrainer,
    SpeechClipPlusTrainingArguments,
    SpeechImageCollator,
    load_speech_image_dataset,
)
from speechclip_plus.hub_cards.cards import save_model_card
from speechclip_plus.modeling_speechclip_plus.audio_utils import SAMPLING_RATE, load_audio
from speechclip_plus.modeling_speechclip_plus.image_utils import load_image
from speechclip_plus.trainer.card_data import trainer_card_facts
from speechclip_plus.trainer.feature_cache import cache_features
from speechclip_plus.trainer.sampler import epoch_order, stored_column
from speechclip_plus.trainer.tiny_backbones import tiny_backbone
from speechclip_plus.trainer.training_log import ProgressPrinter

from .console import Console
from .quickstart import Plan

BATCH_SIZE = 128
LEARNING_RATE = 1e-3
WARMUP_SHARE, SCALED_SHARE = 0.06, 0.3  # of the steps: with a rising learning rate; with CIF scaled to its target
EVALUATIONS = 6
TIMED_STEPS = 8


def train(plan: Plan, preset: str, dataset: str, folder: Path, console: Console) -> dict[str, Any]:
    """Train a model and save it with its processor, card and training history.

    Args:
        plan: Sizes.
        preset: Name of the model's preset.
        dataset: Name of the data set.
        folder: Where to save the model; samples to try it with are written beside it.
        console: Where to tell what happens.

    Returns:
        `metrics` of the test split, `training` (steps, seconds, sizes) and `history`, the trainer's log.
    """
    torch.manual_seed(plan.seed)
    console.phase("data", "1. making the data")
    splits = {
        name: load_speech_image_dataset(dataset, split=name, seed=plan.seed, num_scenes=scenes)
        for name, scenes in (
            ("train", plan.train_scenes),
            ("validation", plan.eval_scenes),
            ("test", plan.eval_scenes),
        )
    }
    for name, split in splits.items():
        console.say(f"  {name}: {len(split):,} utterances in {len(set(split['speaker']))} voices")

    console.phase("features", "2. running the frozen encoders")
    cache = folder.parent / "features"
    model, processor = _build_model(preset, splits["train"]["text"])
    features = {
        name: _features(model, processor, splits[name], name, cache, console) for name in ("train", "validation")
    }
    trainer = _make_trainer(model, processor, features, plan, preset, folder, console)
    console.phase("training", f"3. training: {trainer.args.max_steps:,} steps of {BATCH_SIZE} pairs")
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started

    metrics = trainer.evaluate(splits["test"], metric_key_prefix="test")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    trainer.state.save_to_json(str(folder / "trainer_state.json"))
    save_model_card(folder, _card_facts(trainer, dataset, model.config.model_variant))
    _write_samples(splits["test"], folder.parent)
    shutil.rmtree(cache)
    return {
        "metrics": {name.removeprefix("test_"): value for name, value in metrics.items()},
        "training": {"steps": trainer.state.global_step, "seconds": round(seconds, 1), "batch_size": BATCH_SIZE},
        "history": trainer.state.log_history,
    }


def _build_model(preset: str, captions: Sequence[str]) -> tuple[SpeechClipPlusModel, SpeechClipPlusProcessor]:
    speech, clip = tiny_backbone("hubert"), tiny_backbone("clip")
    processor = SpeechClipPlusProcessor.from_backbones(speech, clip)
    # As published: keywords are the tokens that occur in the data set's captions, and the captions serve for nothing
    # else in training.
    tokens = processor.tokenizer(list(captions), add_special_tokens=False)["input_ids"]
    vocabulary = [token for token, _ in Counter(chain.from_iterable(tokens)).most_common()]
    # Without dropout in the attention torch has a fused kernel for CPUs, and a step takes a third of the time.
    config = SpeechClipPlusConfig.from_preset(
        preset, branch_config={"dropout": 0.0}, keyword_config={"vocabulary_ids": vocabulary}
    )
    return SpeechClipPlusModel.from_backbones(speech=speech, clip=clip, config=config), processor


def _features(
    model: SpeechClipPlusModel, processor: Any, split: Any, name: str, folder: Path, console: Console
) -> Any:
    with console.bar(len(split), name, "utterance") as bar:
        features = cache_features(model, processor, split, folder, progress=lambda done, _: bar.update(done - bar.n))
    console.say(f"  {name}: hidden states of {len(split):,} utterances")
    return features


def _make_trainer(
    model: SpeechClipPlusModel,
    processor: Any,
    features: dict[str, Any],
    plan: Plan,
    preset: str,
    folder: Path,
    console: Console,
) -> SpeechClipPlusTrainer:
    seconds_per_step = _seconds_per_step(model, processor, features["train"], plan)
    steps = plan.steps_within(plan.minutes * 60 - console.seconds, seconds_per_step)
    if steps < plan.steps:
        console.say(f"  at {seconds_per_step:.2f} seconds a step there is time for {steps:,} of {plan.steps:,} steps")
    model.config.cif_config.scale_until_step = round(SCALED_SHARE * steps)
    arguments = SpeechClipPlusTrainingArguments.from_preset(
        preset,
        output_dir=str(folder),
        max_steps=steps,
        warmup_steps=max(1, round(WARMUP_SHARE * steps)),
        learning_rate=LEARNING_RATE,
        per_device_train_batch_size=BATCH_SIZE,
        logging_steps=max(1, steps // 30),
        eval_strategy="steps",
        eval_steps=max(1, steps // EVALUATIONS),
        save_strategy="no",
        train_sampling_strategy="group_by_length",
        dataloader_drop_last=len(features["train"]) > BATCH_SIZE,
        seed=plan.seed,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SpeechClipPlusTrainer(
        model=model,
        args=arguments,
        data_collator=SpeechImageCollator(processor),
        train_dataset=features["train"],
        eval_dataset=features["validation"],
        callbacks=[ProgressPrinter(console.say, console.bar)],
    )
    trainer.remove_callback(PrinterCallback)  # which prints dictionaries of forty figures
    return trainer


def _seconds_per_step(model: SpeechClipPlusModel, processor: Any, train: Any, plan: Plan) -> float:
    """Time a few steps with a copy of the model, so that the run that counts starts from untouched weights."""
    state = torch.get_rng_state()
    trial = copy.deepcopy(model).train()
    collate = SpeechImageCollator(processor)
    optimizer = torch.optim.Adam([p for p in trial.parameters() if p.requires_grad])
    size = min(BATCH_SIZE, len(train))
    # Batches as the training will meet them: how long a step takes depends on the longest utterance.
    order = epoch_order(len(train), seed=plan.seed, lengths=stored_column(train, "length"), batch_size=size)
    times = []
    for start in range(0, size * TIMED_STEPS, size):
        started = time.monotonic()
        batch = collate([train[order[row % len(train)]] for row in range(start, start + size)])
        trial(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.monotonic() - started)
    torch.set_rng_state(state)
    return sum(times[1:]) / len(times[1:])  # without the first, which also allocates


def _card_facts(trainer: SpeechClipPlusTrainer, dataset: str, variant: str) -> Any:
    return trainer_card_facts(
        trainer,
        name=f"{variant}-tiny-{dataset}",
        dataset=dataset,
        languages=("en",),
        license="mit",
        limits=(
            "A model to try things out with. It knows drawn scenes of two objects and synthetic English voices; it "
            "does not understand people or photographs."
        ),
    )


def _write_samples(test: Any, folder: Path) -> None:
    """Leave an utterance, the image that it describes and another one, to try things out with."""
    row, image_ids = test[0], list(test["image_id"])
    other = next((place for place, image_id in enumerate(image_ids) if image_id != image_ids[0]), 0)
    soundfile.write(folder / "query.wav", load_audio(row["audio"], name="query"), SAMPLING_RATE)
    load_image(row["image"], name="first").save(folder / "first.png")
    load_image(test[other]["image"], name="second").save(folder / "second.png")
