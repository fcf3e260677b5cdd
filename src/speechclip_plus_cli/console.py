"""What the quickstart prints while it works."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

from speechclip_plus.trainer.memory import release_memory

LOSS_PARTS = (("parallel", "parallel_loss"), ("cascaded", "cascaded_loss"), ("quantity", "quantity_loss"))


class Console:
    """Lines with the time since the start, and progress bars where somebody watches.

    Args:
        clock: returns seconds; replaced in tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self._phases: list[tuple[str, float]] = []

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    def say(self, text: str = "") -> None:
        """Print a line, above any progress bar."""
        tqdm.write(f"[{clock_time(self.seconds)}] {text}" if text else "", file=sys.stdout)
        sys.stdout.flush()

    def phase(self, name: str, text: str) -> None:
        """Begin a part of the work."""
        self._phases.append((name, self.seconds))
        self.say(text)

    @property
    def phase_seconds(self) -> dict[str, float]:
        """How long each part took; the last one until now."""
        ends = [begin for _, begin in self._phases[1:]] + [self.seconds]
        return {name: round(end - begin, 1) for (name, begin), end in zip(self._phases, ends, strict=True)}

    def bar(self, total: int, text: str, unit: str) -> tqdm:
        """Return a progress bar, which shows only on a terminal."""
        return tqdm(total=total, desc=f"        {text}", unit=unit, leave=False, disable=None, dynamic_ncols=True)


def quiet_libraries() -> None:
    """Keep the libraries' own bars and hints out of the way of ours."""
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


def clock_time(seconds: float) -> str:
    """Minutes and seconds.

    Example:
        >>> clock_time(75.2)
        ' 1:15'
    """
    return f"{int(seconds) // 60:2d}:{int(seconds) % 60:02d}"


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
        release_memory()
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


def format_table(columns: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Align a table for a terminal.

    Example:
        >>> print(format_table(["R@1", "R@10"], [("parallel", ["61.0", "95.2"]), ("chance", ["0.2", "2.0"])]))
                   R@1  R@10
        parallel  61.0  95.2
        chance     0.2   2.0
    """
    rows = list(rows)
    first = max(len(name) for name, _ in rows)
    widths = [max(len(column), *(len(cells[i]) for _, cells in rows)) for i, column in enumerate(columns)]
    lines = [" " * first + "".join(f"  {column:>{width}}" for column, width in zip(columns, widths, strict=True))]
    for name, cells in rows:
        lines.append(f"{name:<{first}}" + "".join(f"  {cell:>{w}}" for cell, w in zip(cells, widths, strict=True)))
    return "\n".join(lines)


def number(value: float, digits: int = 1) -> str:
    """Format a number for a table; a dash for what is not known."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
