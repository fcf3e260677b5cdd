"""Files and folders that are there whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_new_folder(folder: Path, force: bool) -> None:
    """Check, before any work, that a folder may be made, or may be replaced.

    Raises:
        ValueError: If it holds something and `force` is not given, is a file, or holds the folder in which we are.
    """
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder.")
    above = next(parent for parent in folder.parents if parent.exists())
    if not above.is_dir():
        raise ValueError(f"{folder} cannot be made: {above} is a file.")
    if folder in (Path.cwd(), *Path.cwd().parents):
        raise ValueError(f"{folder} is the current folder or above it; name a folder of its own in it.")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise ValueError(f"{folder} exists; name another folder, or replace it with force=True (--force).")


@contextmanager
def finished_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder to work in, which takes the place of `folder` when all went well.

    If anything goes wrong, the temporary folder goes and what was there before stays.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".tmp", dir=folder.parent))
    try:
        yield work
        _share(work)
        move_in_place(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def move_in_place(work: Path, folder: Path) -> None:
    """Give a finished folder its name; what had that name before goes, unless the move fails."""
    if not folder.exists():
        work.rename(folder)
        return
    previous = Path(tempfile.mkdtemp(prefix=f".{folder.name}-previous-", suffix=".tmp", dir=folder.parent))
    folder.rename(previous / folder.name)
    try:
        work.rename(folder)
    except BaseException:
        (previous / folder.name).rename(folder)
        previous.rmdir()
        raise
    shutil.rmtree(previous, ignore_errors=True)


def _share(folder: Path) -> None:
    """Give a folder and what is in it the permissions that new files have here."""
    # mkdtemp makes folders, and safetensors files, that only their owner can read.
    umask = os.umask(0)
    os.umask(umask)
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def write_json(path: Path, content: object) -> None:
    """Write JSON to a temporary name and move it in place."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text to a temporary name and move it in place."""
    write_bytes(path, content.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes to a temporary name and move it in place."""
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
