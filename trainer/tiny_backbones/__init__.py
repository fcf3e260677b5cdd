"""Tiny backbones that stand in for the large ones offline: weights, cards, and where they lie."""

from pathlib import Path

TINY_BACKBONES = ("hubert", "clip")


def tiny_backbone(name: str) -> str:
    """Return the folder of a tiny backbone that ships with the package, "hubert" or "clip", for `from_pretrained`."""
    if name not in TINY_BACKBONES:
        raise ValueError(f"There is no tiny backbone {name!r}: choose one of {', '.join(TINY_BACKBONES)}.")
    folder = Path(__file__).resolve().parent / name
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"{folder} holds no model.safetensors: reinstall the package.")
    return str(folder)
