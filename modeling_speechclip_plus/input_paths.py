"""Paths that a user gives for a recording or a picture."""

import os


def checked_path(path: str | os.PathLike, name: str, kind: str) -> tuple[str, str]:
    """Check that a path leads to a file, with the user's home expanded.

    Args:
        path: What was given.
        name: What errors call the item, for instance "audio[3]".
        kind: What the file should hold, for instance "an audio file".

    Returns:
        The path, and the item's name with the path in it.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If it is a URL or a directory.
    """
    text = os.fspath(path)
    name = f"{name} ({text})"
    if isinstance(text, str) and "://" in text:
        raise ValueError(f"{name}: URLs are not fetched; download the file and pass its path or bytes.")
    text = os.path.expanduser(text)
    if not os.path.exists(text):
        raise FileNotFoundError(f"{name}: no such file.")
    if os.path.isdir(text):
        raise ValueError(f"{name}: this is a directory, expected {kind}.")
    return text, name
