"""Running means of the losses' parts and of keyword usage between two logs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..modeling_speechclip_plus.keywords import perplexity

LOSS_PARTS = ("parallel_loss", "cascaded_loss", "quantity_loss")


class TrainingLog:
    """Sums over training batches, kept on their device so that no step waits for them.

    Args:
        vocabulary_size: V, the tokens that a keyword can be.
    """

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
