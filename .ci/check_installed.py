"""Check that the installed package is whole and stands alone: `python check_installed.py SOURCE_TREE`.

Run outside the source tree, by the Python of the environment the wheel was installed in.
"""

import pkgutil
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path, PurePosixPath

PACKAGES = ["speechclip_plus", "speechclip_plus_cli"]
FOLDERS = ["configuration", "modeling_speechclip_plus", "trainer", "hub_cards"]


def main(source: Path) -> None:
    """Fail with a message if a tracked file is not installed or a module cannot be imported from the installation."""
    import speechclip_plus

    home = Path(speechclip_plus.__file__).resolve().parent
    if not home.is_relative_to(Path(sys.prefix).resolve()):
        sys.exit(f"error: speechclip_plus is imported from {home}, not from this environment")

    listed = subprocess.run(
        ["git", "ls-files", "--", *FOLDERS, "src"],
        cwd=source,
        check=True,
        capture_output=True,
        text=True,
    )
    tracked = [PurePosixPath(line) for line in listed.stdout.splitlines()]
    expected = {
        path.relative_to("src") if path.parts[0] == "src" else "speechclip_plus" / path
        for path in tracked
        if not (source / path).is_symlink()
    }
    missing = sorted(str(path) for path in expected if not (home.parent / path).is_file())
    if missing:
        sys.exit(f"error: not installed: {', '.join(missing)}")

    files = metadata.files("speechclip-plus") or []
    roots = {file.parts[0] for file in files} - {"..", *PACKAGES}
    if any(not root.endswith(".dist-info") for root in roots):
        sys.exit(f"error: the wheel installs {sorted(roots)} beside the package")

    modules = [
        module.name
        for package in PACKAGES
        for module in pkgutil.walk_packages([str(home.parent / package)], f"{package}.")
        if not module.name.endswith("__main__")
    ]
    for name in modules:
        file = import_module(name).__file__
        if file is None or not Path(file).resolve().is_relative_to(home.parent):
            sys.exit(f"error: {name} comes from {file}")

    from speechclip_plus.configuration.configuration_speechclip_plus import SpeechClipPlusConfig

    presets = sorted(path.stem for path in (home / "configuration" / "presets").glob("*.json"))
    for preset in presets:
        SpeechClipPlusConfig.from_preset(preset)
    print(f"{len(expected)} files installed, {len(modules)} modules imported, {len(presets)} presets read")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
