"""How the quickstart spends its time."""

import math
from dataclasses import asdict, dataclass
from typing import Any

REFERENCE_MINUTES = 13.0  # the budget that the numbers below were chosen for, on 2 cores
MIN_STEPS = 20
RESERVED_SECONDS = 75.0  # for the final evaluation, loading the model back and the report


@dataclass(frozen=True)
class Plan:
    """Sizes of the data and of the training.

    Attributes:
        minutes: time budget of the whole quickstart.
        train_scenes: pictures to train on.
        captions_per_scene: spoken captions of each.
        eval_scenes: pictures (one caption each) of the validation and of the test split.
        batch_size: pairs per step.
        steps: training steps, if the machine is fast enough for them.
        learning_rate: the highest one.
        warmup_share: share of the steps with a rising learning rate.
        scaled_share: share of the steps in which CIF is scaled to the target length.
        evaluations: on the validation split, over the training.
        seed: of the data, the initial weights and the order of training.
    """

    minutes: float = REFERENCE_MINUTES
    train_scenes: int = 8000
    captions_per_scene: int = 1
    eval_scenes: int = 500
    batch_size: int = 128
    steps: int = 1500
    learning_rate: float = 1e-3
    warmup_share: float = 0.06
    scaled_share: float = 0.3
    evaluations: int = 6
    seed: int = 0

    @classmethod
    def for_minutes(cls, minutes: float, seed: int = 0, **changes: Any) -> "Plan":
        """Scale data and steps to a time budget.

        Args:
            minutes: the budget, at least 1.
            seed: see above.
            **changes: any attribute that is given rather than scaled; None is not given.

        Raises:
            ValueError: for a budget below a minute, or counts too small to train on.
        """
        if not (math.isfinite(minutes) and minutes >= 1):
            raise ValueError(f"--time-budget-minutes must be at least 1; got {minutes:g}.")
        share = min(minutes / REFERENCE_MINUTES, 4.0)
        scaled = {
            "train_scenes": max(200, round(cls.train_scenes * share)),
            "steps": max(MIN_STEPS, round(cls.steps * share)),
        }
        given = {name: value for name, value in changes.items() if value is not None}
        plan = cls(minutes=minutes, seed=seed, **{**scaled, **given})
        for name, least in (("train_scenes", 8), ("captions_per_scene", 1), ("eval_scenes", 2), ("steps", 2)):
            if getattr(plan, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {least}; got {getattr(plan, name)}.")
        if plan.batch_size < 2:
            raise ValueError(f"--batch-size must be at least 2: other pairs are the negatives; got {plan.batch_size}.")
        return plan

    @property
    def utterances(self) -> int:
        """Training utterances."""
        return self.train_scenes * self.captions_per_scene

    def steps_within(self, seconds: float, seconds_per_step: float) -> int:
        """Return how many of the planned steps fit into the time that is left, at least a few.

        Args:
            seconds: time until the budget ends.
            seconds_per_step: as measured on this machine.
        """
        # Evaluations take time as well, and a machine may slow down: a tenth is kept back.
        fitting = int(0.9 * (seconds - RESERVED_SECONDS) / seconds_per_step)
        return min(self.steps, max(MIN_STEPS, fitting))

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        return asdict(self)
