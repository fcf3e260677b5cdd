"""The map from top-level folders to import names; everything else is in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
FOLDERS = ["configuration", "modeling_speechclip_plus", "trainer", "hub_cards"]

package_dir = {"speechclip_plus": "src/speechclip_plus", "speechclip_plus_cli": "src/speechclip_plus_cli"}
packages = [
    package
    for package in find_packages("src", include=["speechclip_plus*"])
    if package.split(".")[1:2] == [] or package.split(".")[1] not in FOLDERS  # the links show those a second time
]
package_data = {"speechclip_plus": ["py.typed"]}

for folder in FOLDERS:
    name = f"speechclip_plus.{folder}"
    inside = find_packages(folder)  # e.g. "tiny_backbones" in trainer
    package_dir[name] = folder
    packages += [name, *(f"{name}.{package}" for package in inside)]
    code = {folder, *(f"{folder}/{package.replace('.', '/')}" for package in inside)}
    # Whatever stands in a folder and is not one of its modules is data it ships: presets, vocabularies, weights,
    # templates (a template may well be a Python file, in a directory that is no package).
    package_data[name] = sorted(
        path.relative_to(ROOT / folder).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
        and path.suffix != ".pyc"
        and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
        and not (path.suffix == ".py" and path.parent.relative_to(ROOT).as_posix() in code)
    )

setup(packages=packages, package_dir=package_dir, package_data=package_data)
