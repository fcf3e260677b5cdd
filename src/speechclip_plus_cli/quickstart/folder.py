"""What the quickstart may replace."""

import json
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
