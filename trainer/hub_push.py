"""A training's pushes to the Hub: of whole checkpoints, with our card, while training goes on."""

import logging
import os
import re
import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from ..hub_cards.push import prepared_folder, send_prepared

logger = logging.getLogger(__name__)

STAGED = ".pushing"
"""Folder in the output folder in which lies what is being sent."""

_CARD = "README.md"
_MODEL_FILES = ("*.json", "*.safetensors", "*.py", "*.txt", "*.jinja")
_TRAINING_FILES = ("trainer_state.json", "files.json")


class HubPushes:
    """Pushes of one training, one after the other, in a thread of their own.

    What is pushed is set aside first, as links to the files, so that training may replace or remove them meanwhile.

    Args:
        args: The training's: strategy, branch, token and output folder.
        repo_id: `owner/name`.
    """

    def __init__(self, args: TrainingArguments, repo_id: str) -> None:
        self.args, self.repo_id, self._token = args, repo_id, args.hub_token
        self.jobs: list[Future] = []
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._place = Path(args.output_dir) / STAGED
        shutil.rmtree(self._place, ignore_errors=True)  # of a run that was killed

    def push_checkpoint(self, checkpoint: Path, message: str) -> None:
        """Start to push a finished checkpoint's model, and the checkpoint itself if the strategy says so."""
        folder = self._stage(checkpoint)
        state = None
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            state = "last-checkpoint" if self.args.hub_strategy == HubStrategy.CHECKPOINT else checkpoint.name
            shutil.copytree(checkpoint, folder / state, copy_function=_link)
        self.jobs.append(self._thread.submit(self._push, folder, message, state=state))

    def push_model(self, message: str, blocking: bool, **changes: Any) -> Any:
        """Push the model in the output folder after those before it; returns the commit, or its `Future`."""
        self.report_failures()
        job = self._thread.submit(self._push, self._stage(Path(self.args.output_dir)), message, **changes)
        self.jobs.append(job)
        if not blocking:
            return job
        self.jobs.remove(job)  # its failure is raised here
        return job.result()

    def is_busy(self) -> bool:
        """Whether a push is not done yet."""
        return any(not job.done() for job in self.jobs)

    def report_failures(self) -> None:
        """Wait for all pushes, and warn of those that failed."""
        for job in self.jobs:
            if (error := job.exception()) is not None:
                logger.warning(
                    "A push to %s failed, and the training went on without it: %s",
                    self.repo_id,
                    " ".join(str(error).split()),
                )
        self.jobs.clear()

    def _push(self, folder: Path, message: str, state: str | None = None, **changes: Any) -> Any:
        options: dict[str, Any] = {"revision": self.args.hub_revision, "token": self._token, **changes}
        try:
            with prepared_folder(folder, self.repo_id, ignore_patterns=[state] if state else ()) as prepared:
                if state:  # its pickles are what resuming needs
                    shutil.copytree(folder / state, prepared / state, copy_function=_link)
                return send_prepared(
                    prepared,
                    self.repo_id,
                    commit_message=message,
                    delete_patterns=[f"{state}/*"] if state else [],
                    **options,
                )
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _stage(self, source: Path) -> Path:
        """Set a model's files aside, with the card of the output folder, its pictures, and TensorBoard's logs."""
        self._place.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self._place))
        for path in source.iterdir():
            wanted = any(fnmatch(path.name, pattern) for pattern in _MODEL_FILES)
            if path.is_file() and wanted and path.name not in _TRAINING_FILES:
                _link(path, folder / path.name)
        output_dir = Path(self.args.output_dir)
        for name in _named_in_card(output_dir):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(output_dir / name, folder / name)
        if (logs := output_dir / "runs").is_dir():
            shutil.copytree(logs, folder / "runs")  # they grow: no links
        return folder


def _named_in_card(output_dir: Path) -> list[str]:
    """The card and the files beside it that it shows."""
    card = output_dir / _CARD
    if not card.is_file():
        return []
    shown = re.findall(r"\]\(([\w./-]+)\)", card.read_text(encoding="utf-8"))
    inside = [
        name for name in shown if ".." not in name and not name.startswith("/") and (output_dir / name).is_file()
    ]
    return [_CARD, *sorted(set(inside))]


def _link(source: str | os.PathLike, target: str | os.PathLike) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
