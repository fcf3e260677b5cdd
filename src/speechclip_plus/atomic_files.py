"""Atomic writes: files and folders that appear complete or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

MANIFEST = ".speechclip-plus.json"
"""List of the files that `finished_folder` wrote, in the folder itself."""


def check_new_folder(folder: str | os.PathLike, force: bool, inputs: Iterable[str | os.PathLike | None] = ()) -> None:
    """Check, before any work, that a folder can be made, or that replacing it loses nothing but an earlier output.

    `inputs` are read for it; `None` and names that are no path here are passed over.

    Raises:
        ValueError: If `folder` is a link or a file, is or holds an input or the current folder, or is not empty and
            `force` is not given, or holds anything that `finished_folder` did not write.
    """
    folder = Path(folder)
    if folder.is_symlink():
        raise ValueError(f"{folder} is a symbolic link, which is not followed; name the folder itself.")
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder.")
    above = next(parent for parent in folder.parents if parent.exists())
    if not above.is_dir():
        raise ValueError(f"{folder} cannot be made: {above} is a file.")
    for source in (Path.cwd(), *(Path(source).expanduser() for source in inputs if source is not None)):
        if source.exists() and folder in (source.resolve(), *source.resolve().parents):
            raise ValueError(f"{folder} is or holds {source}, which is in use; name another folder.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not force:
        raise ValueError(f"{folder} exists; name another folder, or replace it with force=True (--force).")
    own = _written_files(folder)
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or (path.is_file() and path.relative_to(folder).as_posix() not in own):
            raise ValueError(f"{folder} is not replaced: {path} was not written by an earlier run of this command.")


def _written_files(folder: Path) -> set[str]:
    """Names of the files of an earlier output of `finished_folder`; none in any other folder."""
    try:
        return {MANIFEST, *json.loads((folder / MANIFEST).read_text(encoding="utf-8"))}
    except (OSError, ValueError):
        return set()


@contextmanager
def finished_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder to work in, which takes the place of `folder` if nothing went wrong.

    It gets a hidden list of its files, by which `check_new_folder` knows it again.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".tmp", dir=folder.parent))
    try:
        yield work
        files = sorted(path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file())
        write_json(work / MANIFEST, files)
        _share(work)
        _move_in_place(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _move_in_place(work: Path, folder: Path) -> None:
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
