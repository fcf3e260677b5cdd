"""Completeness of checkpoints: a list of a checkpoint's files, written when all of them are there."""

import json
import re
from pathlib import Path

from ..atomic_files import write_json

_MANIFEST = "files.json"


def mark_complete(checkpoint: Path) -> None:
    """Write the names and sizes of a checkpoint's files beside them."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    sizes = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}
    write_json(checkpoint / _MANIFEST, sizes)


def mark_incomplete(checkpoint: Path) -> None:
    """Take the list away, before files are written where an earlier run left a checkpoint of the same step."""
    (checkpoint / _MANIFEST).unlink(missing_ok=True)


def last_complete_checkpoint(folder: str | Path) -> str | None:
    """Find the `checkpoint-STEP` of the highest step in a folder that is complete.

    Left out are checkpoints from which files are missing, whether they were never written or deleted since, and those
    that `SpeechClipPlusTrainer` did not write.

    Returns:
        Its path; None if there is none.
    """
    steps = {
        int(match[1]): str(path)
        for path in Path(folder).glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and _is_complete(path)
    }
    return steps[max(steps)] if steps else None


def _is_complete(checkpoint: Path) -> bool:
    manifest = checkpoint / _MANIFEST
    if not manifest.is_file():
        return False
    sizes = json.loads(manifest.read_text(encoding="utf-8"))
    return all((checkpoint / name).is_file() and (checkpoint / name).stat().st_size == sizes[name] for name in sizes)
