"""Training arguments whose defaults are the published optimiser and schedule."""

import os
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.utils import logging

from ..configuration.presets import load_preset

logger = logging.get_logger(__name__)

# Endings of the names of metrics that are better when they are lower.
LOWER_IS_BETTER = ("loss", "_rank", "_error", "_duplicates")


@dataclass
class SpeechClipPlusTrainingArguments(TrainingArguments):
    """Arguments of `SpeechClipPlusTrainer`: those of `transformers.TrainingArguments` and a few more.

    The defaults are the paper's; the best checkpoint is chosen by mean recall at 10.

    Attributes:
        optimizer: "adam" for Adam with L2 as published; "trainer" for the one that `optim` names (AdamW, ...).
        schedule: "warmup_decay" as published; "trainer" for the one that `lr_scheduler_type` names (cosine, ...).
        final_learning_rate: where "warmup_decay" ends, after which it stays there.
        max_audio_samples: longest utterance in training at 16 kHz; longer ones are cropped at a random place. None
            never crops. Evaluation never does.
        hit_rate_neighbours: the k of the hit rates: a keyword hits if one of its k nearest tokens is in the caption.
        gradient_cache_chunk: run the speech side this many utterances at a time, with the gradients of the whole
            batch (see `gradient_cache`). Takes less memory and one more forward pass of the speech side.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 1e-6
    warmup_steps: float = 5000
    max_steps: int = 50_000
    max_grad_norm: float = 4.0
    per_device_train_batch_size: int = 256
    per_device_eval_batch_size: int = 64
    metric_for_best_model: str | None = "mean_R@10"
    greater_is_better: bool | None = None  # as the metric's name says
    remove_unused_columns: bool = False  # the collator reads columns by name
    label_names: list[str] | None = field(default_factory=lambda: ["image_ids"])
    eval_do_concat_batches: bool = False  # evaluation joins them once, after the loop
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available)

    optimizer: str = "adam"
    schedule: str = "warmup_decay"
    final_learning_rate: float = 1e-8
    max_audio_samples: int | None = 102_400
    hit_rate_neighbours: list[int] = field(default_factory=lambda: [1, 5])
    gradient_cache_chunk: int | None = None

    def __post_init__(self) -> None:
        """Check our own fields, then those of `transformers`."""
        if self.optimizer not in ("adam", "trainer"):
            raise ValueError(f"optimizer={self.optimizer!r}: choose adam, or trainer with optim='adamw_torch'.")
        if self.schedule not in ("warmup_decay", "trainer"):
            raise ValueError(
                f"schedule={self.schedule!r}: choose warmup_decay, or trainer with lr_scheduler_type='cosine'."
            )
        if self.max_audio_samples is not None and self.max_audio_samples < 400:
            raise ValueError(f"max_audio_samples={self.max_audio_samples}: expected at least 400 (25 ms), or None.")
        if self.train_sampling_strategy not in ("random", "group_by_length"):
            raise ValueError(f"train_sampling_strategy={self.train_sampling_strategy!r}: use 'group_by_length'.")
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            self.greater_is_better = not self.metric_for_best_model.endswith(LOWER_IS_BETTER)
        super().__post_init__()
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and self.world_size == 1:
            raise ValueError(
                f"{os.environ['WORLD_SIZE']} processes were started, but none of them sees a GPU of its own: give "
                "use_cpu=True, with which they train together on CPUs."
            )

        if self.fsdp:
            raise ValueError("fsdp would share out some megabytes: leave it out, and torchrun trains with DDP.")
        if self.n_gpu > 1:
            raise ValueError(
                f"One process sees {self.n_gpu} GPUs and would give each its own negatives. Start one process for "
                f"each: `torchrun --standalone --nproc_per_node {self.n_gpu} ...` (or choose one: "
                "CUDA_VISIBLE_DEVICES=0)."
            )
        if self.batch_eval_metrics:
            raise ValueError("batch_eval_metrics=True: recall needs the whole split at once, so leave it out.")
        if 0 < self.max_steps <= (warmup := self.get_warmup_steps(self.max_steps)):
            logger.warning(
                f"All {self.max_steps:,} steps lie in the warm-up of {warmup:,} steps: give warmup_steps too."
            )

    def choose_metric(self, images: int) -> None:
        """Choose the best model by R@1 or the loss where so few images are searched that recall at k says little."""
        match = re.search(r"R@(\d+)$", self.metric_for_best_model or "")
        if match is None or (k := int(match[1])) == 1 or images >= 10 * k:
            return
        told = f"The validation split has {images} images, of which chance finds the right one among {k} in "
        told += f"{min(100.0, 100 * k / images):.0f} % of all cases: R@{k} says little."
        if self.load_best_model_at_end or self.save_strategy == "best":
            chosen = match.string.replace(f"R@{k}", "R@1") if images >= 10 else "loss"
            self.metric_for_best_model, self.greater_is_better = chosen, chosen != "loss"
            told += f" The best model is chosen by {chosen} instead."
        logger.warning(told)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the token out: the Trainer pickles its arguments beside every saved model."""
        return {**self.__dict__, "hub_token": None}

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "SpeechClipPlusTrainingArguments":
        """Return the hyper-parameters that a preset was published with; any argument replaces the preset's.

        Half precision is switched on where the preset used it and a CUDA device is there.
        """
        training = load_preset(name)["training"]
        if not torch.cuda.is_available():
            training.pop("fp16", None)
        return cls(**{**training, **overrides})


def warmup_decay(step: int, warmup_steps: int, total_steps: int, final_ratio: float) -> float:
    """The published learning-rate curve, as a factor of the highest learning rate.

    Linear from 1/warmup at step 0 up to 1, then linear down to `final_ratio` at the last step, where it stays (the
    original ran on below zero).

    Example:
        >>> [round(warmup_decay(step, 2, 6, 0.0), 2) for step in range(8)]
        [0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0]
    """
    done = step + 1
    if done <= warmup_steps:
        return done / warmup_steps
    share = (done - warmup_steps) / max(1, total_steps - warmup_steps)
    return max(final_ratio, 1.0 - (1.0 - final_ratio) * share)
