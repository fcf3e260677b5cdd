"""Checkpoints that are whole or are not there, so that a run killed at any moment can be resumed."""

import json
import os
import re
import shutil
from pathlib import Path

# Where a checkpoint is written before it is moved to its place.
UNFINISHED = ".unfinished"
_MANIFEST = "files.json"  # of a finished checkpoint: sizes of all its other files


def last_complete_checkpoint(folder: str | Path) -> str | None:
    """Find the `checkpoint-STEP` of the highest step in a folder that is complete.

    Left out are checkpoints from which files are missing, whether they were never written or deleted since, and those
    that `SpeechClipPlusTrainer` did not write.

    Returns:
        Its path; None if there is none.
    """
    found = []
    for path in Path(folder).glob("checkpoint-*"):
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and _is_complete(path):
            found.append((int(match[1]), str(path)))
    return max(found)[1] if found else None


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed run left of a checkpoint."""
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


def finish_checkpoint(folder: Path, name: str) -> None:
    """Move a checkpoint written to `folder/UNFINISHED/name` to its place, after all of it has reached the disk."""
    work, final = folder / UNFINISHED / name, folder / name
    files = sorted(path for path in work.rglob("*") if path.is_file())
    sizes = {path.relative_to(work).as_posix(): path.stat().st_size for path in files}
    (work / _MANIFEST).write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")
    for path in [*files, work / _MANIFEST]:
        _sync(path)
    if final.exists():  # of an earlier run, or saved twice in one step
        final.rename(folder / UNFINISHED / "replaced")
    work.rename(final)
    _sync(folder)
    remove_unfinished(folder)


def _is_complete(checkpoint: Path) -> bool:
    manifest = checkpoint / _MANIFEST
    if not manifest.is_file():
        return False
    sizes = json.loads(manifest.read_text(encoding="utf-8"))
    return all((checkpoint / name).is_file() and (checkpoint / name).stat().st_size == sizes[name] for name in sizes)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        if os.name != "nt":
            os.fsync(handle)
    finally:
        os.close(handle)
