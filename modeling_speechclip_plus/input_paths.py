"""Lists of audio and image files in folders."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def list_files(paths: Sequence[str], suffixes: Sequence[str], what: str) -> list[Path]:
    """List the files among `paths` and in the folders among them, in order of their names.

    Linked folders are followed, each once; hidden files and folders (`._1.png`, `.thumbnails`) and `__MACOSX` are
    left out.

    Args:
        paths: Files, taken as they are, and folders, searched with all folders in them; `~` is the user's home.
        suffixes: Of the files to take from folders, lower case.
        what: What errors call a file.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If a folder holds no such file.
    """
    files: list[Path] = []
    for path in (Path(path).expanduser() for path in paths):
        if not path.exists():
            raise FileNotFoundError(f"There is no {what} or folder {path}.")
        if path.is_dir():
            found = sorted(file for file in walk_files(path) if file.suffix.lower() in suffixes)
            if not found:
                raise ValueError(f"The folder {path} holds no {what} ({', '.join(suffixes)}).")
            files += found
        else:
            files.append(path)
    return files


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and of the folders in it, without those that are hidden."""
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link back to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        yield from (Path(root, name) for name in names if not _is_hidden(name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
