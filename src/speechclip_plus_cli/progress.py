"""Progress of a training: the losses and the evaluations, a line each, and a progress bar."""

from collections.abc import Mapping
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

from .console import Console

LOSS_PARTS = (("parallel", "parallel_loss"), ("cascaded", "cascaded_loss"), ("quantity", "quantity_loss"))


class ProgressPrinter(TrainerCallback):
    """Prints the losses and the evaluations of a training run, and shows a bar."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar."""
        self.bar = self.console.bar(state.max_steps, "training", "step")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Print the losses."""
        if not logs or "loss" not in logs:
            return
        parts = ", ".join(f"{name} {logs[key]:.2f}" for name, key in LOSS_PARTS if key in logs)
        more = f"  keywords {logs['keywords_per_utterance']:.1f}" if "keywords_per_utterance" in logs else ""
        self.console.say(
            f"  step {state.global_step:>5}/{state.max_steps}  loss {logs['loss']:.2f} ({parts})"
            f"  temperature {logs['temperature']:.3f}{more}"
        )

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Print the evaluation."""
        metrics = metrics or {}
        told = [
            f"{branch} R@1 {metrics[f'eval_{branch}_speech_to_image_R@1']:.0f} % "
            f"R@10 {metrics[f'eval_{branch}_speech_to_image_R@10']:.0f} %"
            for branch in ("parallel", "cascaded")
            if f"eval_{branch}_speech_to_image_R@1" in metrics
        ]
        if "eval_keyword_hit_rate@1" in metrics:
            told.append(f"keyword hits {metrics['eval_keyword_hit_rate@1']:.0f} %")
        if told:
            self.console.say(f"    validation, speech to image: {'; '.join(told)}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
