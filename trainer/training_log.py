"""Training log: running means of the losses' parts and of keyword usage, and a callback that prints progress."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from ..modeling_speechclip_plus.keywords import perplexity

LOSS_PARTS = ("parallel_loss", "cascaded_loss", "expected_loss", "quantity_loss")


class TrainingLog:
    """Sums over training batches, kept on their device so that no step waits for them."""

    def __init__(self, vocabulary_size: int) -> None:
        self.vocabulary_size = vocabulary_size
        self.batches = 0
        self.sums: dict[str, Tensor] = {}
        self.chosen: Tensor | None = None  # (V + 1,) how often each token was chosen, the first for padding

    def add(self, outputs: Mapping[str, Any]) -> None:
        """Add a batch's output."""
        values = {name: outputs[name] for name in LOSS_PARTS if outputs.get(name) is not None}
        if outputs.get("keyword_ids") is not None:
            values["keywords_per_utterance"] = outputs["keyword_lengths"].float().mean()
            ids = outputs["keyword_ids"].detach().flatten().clamp(min=-1) + 1
            if self.chosen is None:
                self.chosen = torch.zeros(self.vocabulary_size + 1, device=ids.device)
            self.chosen.index_add_(0, ids, torch.ones_like(ids, dtype=torch.float32))
        if outputs.get("alpha_sums") is not None and outputs.get("target_lengths") is not None:
            values["cif_length_error"] = (outputs["alpha_sums"].float() - outputs["target_lengths"]).abs().mean()
        for name, value in values.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.batches += 1

    def averages(self, accelerator: Any) -> dict[str, float]:
        """Return means over the batches of all processes since the last call, and begin anew."""
        result = {
            name: accelerator.reduce(total / self.batches, reduction="mean").item()
            for name, total in self.sums.items()
        }
        if self.chosen is not None:
            counts = accelerator.reduce(self.chosen[1:], reduction="sum")
            result["distinct_keywords"] = int((counts > 0).sum())
            result["code_perplexity"] = perplexity(counts).item()
        self.batches, self.sums, self.chosen = 0, {}, None
        return result


class ProgressPrinter(TrainerCallback):
    """Prints losses and recall by `say`, and shows the steps in the `tqdm` bar of a total, a text and a unit."""

    def __init__(self, say: Callable[[str], None], make_bar: Callable[[int, str, str], Any]) -> None:
        self.say, self.make_bar = say, make_bar

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar."""
        self.bar = self.make_bar(state.max_steps, "training", "step")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.bar.close()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Print the losses."""
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        parts = ", ".join(f"{name.removesuffix('_loss')} {logs[name]:.2f}" for name in LOSS_PARTS if name in logs)
        more = f"  keywords {logs['keywords_per_utterance']:.1f}" if "keywords_per_utterance" in logs else ""
        self.say(
            f"  step {state.global_step:>5}/{state.max_steps}  loss {logs['loss']:.2f} ({parts})"
            f"  temperature {logs['temperature']:.3f}{more}"
        )

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Print R@1 and R@10 of each branch."""
        if not metrics or "eval_images" not in metrics or not state.is_world_process_zero:
            return
        told = [
            f"{branch} R@1 {metrics[f'eval_{branch}_speech_to_image_R@1']:.0f} % "
            f"R@10 {metrics[f'eval_{branch}_speech_to_image_R@10']:.0f} %"
            for branch in ("parallel", "cascaded")
            if f"eval_{branch}_speech_to_image_R@10" in metrics
        ]
        chance = [f"{min(100.0, 100 * k / metrics['eval_images']):.1f} %" for k in (1, 10)]
        self.say(f"    validation, speech to image: {'; '.join(told)}; chance {' and '.join(chance)}")
