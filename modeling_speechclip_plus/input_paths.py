"""Lists of audio and image files in folders."""

from collections.abc import Sequence
from pathlib import Path

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def list_files(paths: Sequence[str], suffixes: Sequence[str], what: str) -> list[Path]:
    """List the files among `paths` and in the folders among them, in order of their names.

    Args:
        paths: files, taken as they are, and folders, searched with all folders in them.
        suffixes: of the files to take from folders, lower case.
        what: what errors call a file.

    Raises:
        FileNotFoundError: if a path does not exist.
        ValueError: if a folder holds no such file.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"There is no {what} or folder {path}.")
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in suffixes)
            if not found:
                raise ValueError(f"The folder {path} holds no {what} ({', '.join(suffixes)}).")
            files += found
        else:
            files.append(path)
    return files
