"""The quickstart's output folder: there whole or not at all."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MADE_BY = "speechclip-plus quickstart"
RESULTS = "results.json"


def check_output_dir(folder: Path, overwrite: bool) -> None:
    """Check, before any work, that the output may go there.

    Raises:
        ValueError: if the folder is a file, holds something that the quickstart did not make (and `overwrite` is
            not given), or is the folder in which we are, or one above it.
    """
    folder = folder.resolve()
    if folder in (Path.cwd(), *Path.cwd().parents):
        raise ValueError(f"--output-dir {folder} is the current folder or above it; name a folder of its own in it.")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output-dir {folder} is a file; name a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite and not is_quickstart_output(folder):
        raise ValueError(
            f"--output-dir {folder} holds files that the quickstart did not make; name another folder, or give "
            "--overwrite to replace all that is in it."
        )


def is_quickstart_output(folder: Path) -> bool:
    """Whether an earlier quickstart made this folder."""
    try:
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(results, dict) and results.get("made_by") == MADE_BY


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
        work.chmod(0o755)  # mkdtemp makes folders that only their owner can enter
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
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_json(path: Path, content: object) -> None:
    """Write JSON to a temporary name and move it in place."""
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        unfinished.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
