"""How long a training took, and what energy it used where that is measured, over all its resumptions."""

import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

POWERCAP = Path("/sys/class/powercap")
ENERGY_SOURCE = "RAPL: processor packages of this machine, whatever ran on them"


class TrainingMeter(TrainerCallback, ExportableState):
    """Adds up seconds and joules from the beginning to the end of training.

    What checkpoints hold goes on when a run is resumed. What came after the last one is done again, and counted once.

    Args:
        powercap: where Linux shows the processor's energy counters.

    Attributes:
        seconds: of training, evaluations included.
        joules: of the processor packages; None where they cannot be read, and where GPUs train, whose energy they
            leave out.
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self.seconds = 0.0
        self.joules: float | None = None
        self._powercap = powercap
        self._clock: float | None = None
        self._counters: dict[Path, int] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start, or go on from what the checkpoint holds."""
        name = type(self).__name__
        stored = state.stateful_callbacks.get(name) if state.global_step > 0 else None
        attributes: dict[str, Any] = (
            stored["attributes"] if isinstance(stored, dict) else {"seconds": 0.0, "joules": None}
        )
        self.seconds, self.joules = attributes["seconds"], attributes["joules"]
        self._counters = _energy_counters(self._powercap) if args.device.type == "cpu" and args.world_size == 1 else {}
        if not self._counters:
            self.joules = None
        elif state.global_step == 0:
            self.joules = 0.0
        self._clock = time.monotonic()
        # Trainer adds to what the state holds, and a checkpoint of an older version holds nothing.
        state.stateful_callbacks[name] = self.state()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count: the energy counters start anew after some minutes, so they are read at every step."""
        self._count()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop."""
        self._count()
        self._clock = None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        self._count()
        return {"args": {}, "attributes": {"seconds": self.seconds, "joules": self.joules}}

    def _count(self) -> None:
        if self._clock is None:
            return
        now = time.monotonic()
        self.seconds += now - self._clock
        self._clock = now
        if self.joules is None:
            return
        try:
            counters = _energy_counters(self._powercap)
            for counter, value in counters.items():
                used = value - self._counters.get(counter, value)
                if used < 0:  # it started anew
                    used += int((counter.parent / "max_energy_range_uj").read_text())
                self.joules += used / 1e6
            self._counters = counters
        except (OSError, ValueError):
            self.joules = None


def _energy_counters(powercap: Path) -> dict[Path, int]:
    """Microjoules by counter, of the packages only (`intel-rapl:0`, not its parts); none if they cannot be read."""
    try:
        files = sorted(path / "energy_uj" for path in powercap.glob("*-rapl:[0-9]*") if path.name.count(":") == 1)
        return {
            file: int(file.read_text()) for file in files if (file.parent / "name").read_text().startswith("package")
        }
    except (OSError, ValueError):
        return {}
