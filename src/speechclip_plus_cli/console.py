"""Console output and the options that several commands share: progress, tables, KEY=VALUE, the model to use.

Nothing here imports PyTorch or transformers before a command runs.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

QUICKSTART_MODEL = Path("quickstart", "model")


class Console:
    """Lines with the time since the start (by `clock`, in seconds), and progress bars where somebody watches."""

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


def positive(text: str) -> int:
    """Read a whole number from 1, for `argparse`."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def data_options(given: Sequence[str], option: str = "--option") -> dict[str, Any]:
    """Read KEY=VALUE; a value that is JSON is meant as such, any other is text.

    Example:
        >>> data_options(["num_scenes=100", "bf16=True", "eval_strategy=no", 'columns={"audio": "sound"}'])
        {'num_scenes': 100, 'bf16': True, 'eval_strategy': 'no', 'columns': {'audio': 'sound'}}
    """
    values: dict[str, Any] = {}
    for entry in given:
        key, equals, value = entry.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"{option} {entry} is not KEY=VALUE, such as num_scenes=100.")
        values[key] = json_or_text(value)
    return values


def json_or_text(value: str) -> Any:
    """Read a number, true, false, null, a list or a mapping as JSON writes them; return anything else as it is."""
    try:
        return json.loads(value.lower() if value in ("True", "False") else value)
    except json.JSONDecodeError:
        return value


def model_source(given: str | None) -> str:
    """Return the folder of a saved model, also in that of a quickstart or a training, or the repository that is meant.

    Without a name it is the model of a quickstart in the current folder.

    Raises:
        ValueError, OSError: if there is no such model.
    """
    if given is None:
        if not (QUICKSTART_MODEL / "config.json").is_file():
            raise ValueError(
                f"There is no model in {QUICKSTART_MODEL}: make one with `speechclip-plus quickstart`, or name "
                "another with --model: a folder, or a repository on the Hub."
            )
        return str(QUICKSTART_MODEL)
    folder = Path(given)
    if not folder.exists():
        # Not what a repository could be, or in a folder that is here: no reason to ask the Hub for it.
        if folder == QUICKSTART_MODEL or given.count("/") != 1 or folder.parent.is_dir():
            raise OSError(f"There is no folder {given}; a repository on the Hub is named OWNER/NAME.")
        return given
    if (folder / "config.json").is_file():
        return given
    if (folder / "model" / "config.json").is_file():
        return str(folder / "model")
    raise OSError(f"{given} is no folder of a saved model: it has no config.json.")


def load_model(path: str, revision: str | None = None) -> tuple[Any, Any]:
    """Load the model that `model_source` finds, in evaluation mode, on a GPU where there is one, and its processor.

    Raises:
        OSError: if there is no such model, or it has no processor.
        ValueError: if it is a model of another kind.
    """
    import torch

    from speechclip_plus import SpeechClipPlusModel, SpeechClipPlusProcessor

    path = model_source(path)
    folder = Path(path)
    if folder.exists():
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind != "speechclip_plus":
            held = f"a {kind!r} model" if kind else "no model: its config.json names no model_type"
            raise ValueError(f"{path} holds {held}; expected a model of type 'speechclip_plus'.")
    where = {"revision": revision or "main"}
    try:
        model = SpeechClipPlusModel.from_pretrained(path, **where).eval()
        processor = SpeechClipPlusProcessor.from_pretrained(path, **where)
    except (OSError, ValueError) as error:
        raise OSError(f"The model {path!r} cannot be loaded with its processor: {error}") from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), processor
