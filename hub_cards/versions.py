"""What a result was made with."""

import platform
from importlib import metadata


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    packages = ("speechclip-plus", "torch", "transformers", "datasets", "safetensors")
    found = {"Python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "from source"
    return found
