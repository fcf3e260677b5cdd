"""The house: folders, links, what the wheel holds, and what importing the package costs."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path, PurePosixPath

import pytest

PACKAGES = ["speechclip_plus", "speechclip_plus_cli"]
FOLDERS = ["configuration", "modeling_speechclip_plus", "trainer", "hub_cards"]
# Directories whose Python files are data: written out for somebody else to run.
TEMPLATES = {"hub_cards/templates", "hub_cards/space", "hub_cards/metrics"}


def files_of(folder: Path) -> list[Path]:
    """Return what git would keep of `folder`: no bytecode, nothing hidden."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.suffix != ".pyc"
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


@pytest.fixture(scope="module")
def wheel(repository_root, tmp_path_factory) -> Path:
    """A wheel built from a copy of the tree without the links, as on a system that has none."""
    pytest.importorskip("setuptools")
    source = tmp_path_factory.mktemp("source")
    for folder in FOLDERS:
        shutil.copytree(repository_root / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    without = {folder for folder in FOLDERS} | {"__pycache__"}
    shutil.copytree(repository_root / "src", source / "src", ignore=lambda _, names: without & set(names))
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md", "MANIFEST.in"):
        if (repository_root / name).exists():
            shutil.copy(repository_root / name, source)
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run([*command, "-w", target, source], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return next(target.glob("*.whl"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_has_its_link_under_src(repository_root, folder):
    link = repository_root / "src" / "speechclip_plus" / folder
    assert link.is_symlink() and link.resolve() == repository_root / folder
    assert not Path(os.readlink(link)).is_absolute()


def test_every_folder_with_python_files_is_a_package(repository_root):
    directories = {
        path.parent.relative_to(repository_root).as_posix()
        for folder in FOLDERS
        for path in files_of(repository_root / folder)
        if path.suffix == ".py"
    }
    directories = {name for name in directories if not any(f"{name}/".startswith(f"{t}/") for t in TEMPLATES)}
    assert directories >= set(FOLDERS)
    for name in directories:
        assert (repository_root / name / "__init__.py").is_file(), f"{name} has Python files and no __init__.py"


def test_no_top_level_folder_hides_a_dependency(repository_root):
    for name in ("datasets", "evaluate", "tokenizers", "accelerate", "transformers"):
        assert not (repository_root / name).exists()


def modules_of(root: Path, folder: str) -> list[Path]:
    """Python files of a folder that are modules of the package, which templates for others to run are not."""
    return [
        path
        for path in files_of(root / folder)
        if path.suffix == ".py" and not any(path.is_relative_to(root / template) for template in TEMPLATES)
    ]


# Each folder may import itself and the folders named here; `atomic_files` and `remote_code` serve all.
FLOW = {
    "configuration": set(),
    "modeling_speechclip_plus": {"configuration"},
    "hub_cards": {"configuration"},
    "trainer": {"configuration", "modeling_speechclip_plus", "hub_cards"},
    "src/speechclip_plus/conversion": {"configuration", "modeling_speechclip_plus", "hub_cards"},
}


@pytest.mark.parametrize("folder", FLOW)
def test_imports_flow_one_way_and_are_relative(repository_root, folder):
    """All imports count: inside functions and under TYPE_CHECKING too."""
    own = Path(folder).name
    allowed = FLOW[folder] | {own, "atomic_files", "remote_code"}
    for path in modules_of(repository_root, folder):
        package = ["speechclip_plus", own, *path.relative_to(repository_root / folder).parts[:-1]]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                assert not [alias for alias in node.names if alias.name.startswith("speechclip_plus")], where
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert not (node.module or "").startswith("speechclip_plus"), where
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) - node.level + 1]
                target = [*above, *(node.module or "").split(".")]
                assert node.module, f"{where} imports a name of a folder; name the module"
                assert target[1] in allowed, f"{where}: {own} must not import {target[1]}"


def test_the_wheel_holds_every_file_of_the_folders_and_nothing_beside_the_package(repository_root, wheel):
    names = {PurePosixPath(name) for name in zipfile.ZipFile(wheel).namelist()}
    expected = {
        PurePosixPath("speechclip_plus") / path.relative_to(repository_root).as_posix()
        for folder in FOLDERS
        for path in files_of(repository_root / folder)
    }
    assert not expected - names
    assert PurePosixPath("speechclip_plus/py.typed") in names
    assert {name.parts[0] for name in names} == {*PACKAGES, f"{wheel.name.split('-py3')[0]}.dist-info"}


def test_the_wheel_ships_presets_vocabularies_and_the_command(wheel):
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    assert any(re.fullmatch(r"speechclip_plus/configuration/presets/.*\.json", name) for name in names)
    assert any(re.fullmatch(r"speechclip_plus/configuration/vocabularies/.*\.npy", name) for name in names)
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    assert "speechclip-plus = speechclip_plus_cli.main:main" in archive.read(entry_points).decode()


def test_the_wheel_works_from_anywhere(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    code = (
        "import speechclip_plus, speechclip_plus.modeling_speechclip_plus.processing_speechclip_plus as p;"
        "print(speechclip_plus.__file__); print(p.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert all(line.startswith(str(tmp_path / "installed")) for line in done.stdout.splitlines())


def test_the_metadata_names_the_licence_and_the_extras(wheel):
    archive = zipfile.ZipFile(wheel)
    metadata = Parser().parsestr(archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))).decode())
    assert metadata["License-Expression"] == "MIT"
    assert set(metadata.get_all("Provides-Extra")) == {"quickstart", "demo", "docs", "dev"}


def test_importing_the_package_imports_nothing_slow(repository_root, tmp_path):
    code = (
        "import sys, speechclip_plus;"
        "print(*({'datasets', 'evaluate', 'open_clip', 'gradio', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(repository_root / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_the_version_is_the_same_everywhere(repository_root):
    version = tomllib.loads((repository_root / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (repository_root / "CITATION.cff").read_text()
    assert re.search(
        rf"\[{re.escape(version)}\]|What will be {re.escape(version)}", _read(repository_root, "CHANGELOG.md")
    )
    declared = re.search(r'__version__ = "([^"]+)"', _read(repository_root, "src/speechclip_plus/__init__.py"))
    assert declared is None or declared[1] == version


def test_no_file_names_a_private_path_or_a_registry(repository_root):
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repository_root, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    # put together here so that this file does not hold them
    words = ["/" + "work/", "../" + "shared", "/" + "tmp/w", "/" + "root/", "/opt/" + "wheels", "/opt/" + "pypi"]
    words += ["find" + "-links", "extra-index" + "-url"]
    for name in filter(None, listed.stdout.split("\0")):
        path = repository_root / name
        if path.is_symlink() or not path.is_file():
            continue
        content = path.read_bytes()
        if b"\0" in content[:8_000]:
            continue
        for word in words:
            assert word.encode() not in content, f"{name} holds {word!r}"


def _read(root: Path, name: str) -> str:
    return (root / name).read_text(encoding="utf-8")


def test_one_word_for_one_thing(repository_root):
    contributing = _read(repository_root, "CONTRIBUTING.md")
    table = contributing.split("| write | not |")[1].split("\n\n")[0]
    banned = [row.split("|")[2].strip() for row in table.splitlines()[2:]]
    assert len(banned) >= 20
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, banned))})s?\b", re.IGNORECASE)
    listed = subprocess.run(["git", "ls-files"], cwd=repository_root, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        path = repository_root / name
        if name.startswith("scripts/"):  # word lists of the tiny backbones
            continue
        if path.suffix in (".py", ".md", ".jinja", ".js", ".html") and not path.is_symlink() and path.is_file():
            text = path.read_text(encoding="utf-8").replace(table, "")
            for quoted in ("8k-pictures.html", "a picture of {}."):  # an address, a prompt that CLIP knows
                text = text.replace(quoted, "")
            found = pattern.search(text)
            assert not found, f"{name}: {found[0]!r}; CONTRIBUTING.md has the word for it"


def test_module_docstrings_begin_with_a_noun(repository_root):
    for folder in (*FLOW, "src/speechclip_plus_cli"):
        for path in modules_of(repository_root, folder):
            title = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split(" ")[0]
            assert title and title not in {"What", "Which", "How", "Whatever", "Whether", "From"}, f"{path}: {title}"
