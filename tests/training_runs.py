"""Tiny training runs for tests that need processes of their own.

As a script under torchrun: `training_runs.py OUT` writes what each run of `distributed_runs` gave to OUT/runs.pt.
As a module: the parts of those runs.
"""

import sys
from pathlib import Path

import datasets
import numpy as np
import soundfile
import torch
import transformers
from PIL import Image
from transformers import TrainerCallback

from speechclip_plus.configuration.configuration_speechclip_plus import SpeechClipPlusConfig
from speechclip_plus.modeling_speechclip_plus.modeling_speechclip_plus import SpeechClipPlusModel
from speechclip_plus.modeling_speechclip_plus.processing_speechclip_plus import SpeechClipPlusProcessor
from speechclip_plus.trainer import feature_cache
from speechclip_plus.trainer.tiny_backbones import tiny_backbone
from speechclip_plus.trainer.trainer_speechclip_plus import SpeechClipPlusTrainer
from speechclip_plus.trainer.training_arguments import SpeechClipPlusTrainingArguments
from speechclip_plus_cli import main as cli

NUM_ROWS = 11  # two captions of each image but the last: no multiple of any batch size used here
VOCABULARY = 653


def make_config(variant="hybrid_plus", dropout=0.0, **changes):
    plus = variant.endswith("plus")
    values = {
        "model_variant": variant,
        "speech_config": {
            "model_type": "hubert",
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "conv_dim": [8, 8],
            "conv_kernel": [10, 8],
            "conv_stride": [20, 16],
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 8,
            "num_conv_pos_embedding_groups": 2,
            "layerdrop": 0.0,
        },
        "clip_config": {
            "projection_dim": 12,
            "text_config": {
                "vocab_size": VOCABULARY,
                "hidden_size": 12,
                "intermediate_size": 24,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "max_position_embeddings": 77,
                "bos_token_id": VOCABULARY - 2,
                "eos_token_id": VOCABULARY - 1,
            },
            "vision_config": {
                "image_size": 64,
                "patch_size": 32,
                "hidden_size": 12,
                "intermediate_size": 24,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
            },
        },
        "branch_config": {"num_attention_heads": 2, "dropout": dropout},
        "cif_config": {"scale_until_step": 3, "dropout": dropout} if plus else None,
        "keyword_config": None if variant == "parallel" else {"projection_dropout": dropout},
    }
    return SpeechClipPlusConfig(**(values | changes))


def make_model(variant="hybrid_plus", dropout=0.0, **changes):
    torch.manual_seed(0)
    return SpeechClipPlusModel(make_config(variant, dropout, **changes))


def make_processor():
    return SpeechClipPlusProcessor.from_backbones(tiny_backbone("hubert"), tiny_backbone("clip"))


def make_dataset(num_rows=NUM_ROWS):
    generator = np.random.default_rng(0)
    rows = []
    for number in range(num_rows):
        if number % 2 == 0:
            image = Image.fromarray(generator.integers(0, 255, (64, 64, 3), dtype=np.uint8))
        samples = generator.uniform(-1, 1, 8000 + 640 * (number * 7 % num_rows))
        rows.append(
            {
                "audio": {"array": samples.tolist(), "sampling_rate": 16_000},
                "image": image,
                "image_id": 100 + number // 2,
                "text": ["a red circle", "a square", "blue"][number % 3],
                "caption_id": str(number),
            }
        )
    return datasets.Dataset.from_list(rows).cast_column("image", datasets.Image(decode=False))


class Recorder(TrainerCallback):
    """Keeps the gradients of every step, as the optimiser gets them."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        model = getattr(model, "module", model)
        self.gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


def make_trainer(folder, model=None, dataset=None, callbacks=None, **arguments):
    defaults = {
        "output_dir": str(folder),
        "max_steps": 10,
        "warmup_steps": 2,
        "learning_rate": 1e-3,
        "adam_epsilon": 1e-4,  # what has a zero gradient, up to rounding, must not be moved by the rounding
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_audio_samples": 10_000,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    dataset = make_dataset() if dataset is None else dataset
    trainer = SpeechClipPlusTrainer(
        model=model or make_model(),
        args=SpeechClipPlusTrainingArguments(**{**defaults, **arguments}),
        train_dataset=dataset,
        eval_dataset=dataset if isinstance(dataset, datasets.Dataset) else None,
        processing_class=make_processor(),
        callbacks=callbacks,
    )
    trainer.pop_callback(transformers.PrinterCallback)
    return trainer


def recorded_run(folder, variant="hybrid_plus", **arguments):
    """Train and evaluate; return gradients, weights, logs and metrics."""
    recorder = Recorder()
    trainer = make_trainer(folder, make_model(variant), callbacks=[recorder], **arguments)
    trainer.train()
    return {
        "gradients": recorder.gradients,
        "weights": {name: value.clone() for name, value in trainer.model.state_dict().items()},
        "logs": [entry for entry in trainer.state.log_history if "loss" in entry],
        "metrics": trainer.evaluate(),
    }


def distributed_runs(folder, batch_size):
    """The runs that must not depend on the number of processes; `batch_size` is that of each of them."""
    sizes = {"per_device_train_batch_size": batch_size, "per_device_eval_batch_size": 3}
    runs = {
        "random": recorded_run(folder / "random", **sizes),
        "grouped": recorded_run(
            folder / "grouped",
            "cascaded",
            max_steps=3,
            train_sampling_strategy="group_by_length",
            gradient_accumulation_steps=2,
            **sizes,
        ),
    }
    runs["cached"] = recorded_run(folder / "cached", max_steps=3, gradient_cache_chunk=1, **sizes)
    return runs


def streamed_rows(folder):
    """Captions that this process met in two passes over a stream of two files."""
    stream = make_dataset(12).to_iterable_dataset(num_shards=2)
    trainer = make_trainer(folder, dataset=stream, max_steps=4, per_device_train_batch_size=3)
    seen = []
    collate = trainer.data_collator.__class__.__call__

    def watch(self, rows):
        seen.extend(int(row["caption_id"]) for row in rows)
        return collate(self, rows)

    trainer.data_collator.__class__.__call__ = watch
    try:
        trainer.train()
    finally:
        trainer.data_collator.__class__.__call__ = collate
    return seen


def write_folder(folder, num_rows=12):
    """A data set as `load_speech_image_dataset("folder")` reads it, a third of it for validation."""
    folder.mkdir(parents=True)
    generator, lines = np.random.default_rng(0), ["audio,image,text,split"]
    for number in range(num_rows):
        soundfile.write(folder / f"{number}.wav", generator.uniform(-0.5, 0.5, 8000 + 800 * number), 16_000)
        Image.fromarray(generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        lines.append(f"{number}.wav,{number}.png,a red circle,{'validation' if number % 3 == 2 else 'train'}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def train_by_command(out):
    """Train for two steps, and go on for two more; returns the exit codes."""
    settings = ["max_steps=2", "warmup_steps=1", "per_device_train_batch_size=2", "use_cpu=true", "disable_tqdm=true"]
    started = ["--preset", "cascaded-tiny", "--data", str(out / "data"), "--output-dir", str(out / "command")]
    for setting in settings:
        started += ["--set", setting]
    return [
        cli.main(["train", *started]),
        cli.main(["train", "--output-dir", str(out / "command"), "--resume", "--set", "max_steps=4"]),
    ]


def count_embedded_images():
    """A list that grows by every image that this process embeds for the cache."""
    embedded, plain = [], feature_cache.embed_images

    def counting(model, processor, images, *args, **kwargs):
        embedded.extend(images)
        return plain(model, processor, images, *args, **kwargs)

    feature_cache.embed_images = counting
    return embedded


if __name__ == "__main__":
    out = Path(sys.argv[1])
    results = distributed_runs(out, batch_size=2)
    seen = [None, None]
    torch.distributed.all_gather_object(seen, streamed_rows(out / "streamed"))
    results["streamed"] = seen
    if torch.distributed.get_rank() == 0:
        write_folder(out / "data")
    torch.distributed.barrier()
    embedded = count_embedded_images()
    results["command"] = train_by_command(out)
    results["embedded"] = [None, None]
    torch.distributed.all_gather_object(results["embedded"], len(embedded))
    if torch.distributed.get_rank() == 0:
        torch.save(results, out / "runs.pt")
    torch.distributed.destroy_process_group()
