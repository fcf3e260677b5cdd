"""Remote code: the Python files that let a saved model load where this package is not installed.

`AutoModel.from_pretrained(repo, trust_remote_code=True)` runs the files that lie beside the weights: this package's
own modules, merged into four files. A module goes into the first of them that needs it, so each imports only those
above it. A model that was loaded in this way saves the same files again.
"""

import ast
import json
import os
import re
from collections.abc import Sequence
from importlib import import_module, metadata
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

ROOTS = {
    "configuration_speechclip_plus": "speechclip_plus.configuration.configuration_speechclip_plus",
    "modeling_speechclip_plus": "speechclip_plus.modeling_speechclip_plus.modeling_speechclip_plus",
    "processing_speechclip_plus": "speechclip_plus.modeling_speechclip_plus.processing_speechclip_plus",
    "pipelines_speechclip_plus": "speechclip_plus.modeling_speechclip_plus.pipelines",
}
"""The files, in the order in which they import each other, and the module that each is made for."""

IS_REMOTE = __name__.startswith("transformers_modules.")
"""Remote code: whether this very module came along with a model, which must then keep its code when it is saved."""

CONFIGS = ("config.json", "processor_config.json")
_CONFIG_ENTRIES = ("auto_map", "custom_pipelines")
_AUTO_CLASSES = ("AutoConfig", "AutoModel", "AutoProcessor")


def add_remote_code(folder: str | os.PathLike, configs: Sequence[str] = CONFIGS) -> None:
    """Write the code into a saved model's folder, and entries that refer to it into those of `configs` it has."""
    for name, text in remote_code_files().items():
        (Path(folder) / name).write_text(text, encoding="utf-8")
    entries = remote_code_entries()
    processor = {"AutoProcessor": entries["auto_map"]["AutoProcessor"]}
    own = {"config.json": entries, "processor_config.json": {"auto_map": processor}}
    for name in configs:
        _set_entries(Path(folder) / name, own[name])


def remove_code_entries(folder: str | os.PathLike, configs: Sequence[str] = CONFIGS) -> None:
    """Take the entries that refer to code out of a saved model's JSON files, where no code lies beside them."""
    for name in configs:
        _set_entries(Path(folder) / name, {})


def remote_code_entries() -> dict[str, Any]:
    """Entries of `config.json` that say which class of which file serves each Auto class and each pipeline task."""
    # From here transformers, which copies the files that relative imports name, reaches all four of them.
    from .configuration.configuration_speechclip_plus import SpeechClipPlusConfig
    from .modeling_speechclip_plus.modeling_speechclip_plus import SpeechClipPlusModel
    from .modeling_speechclip_plus.pipelines import PIPELINES
    from .modeling_speechclip_plus.processing_speechclip_plus import SpeechClipPlusProcessor

    classes = (SpeechClipPlusConfig, SpeechClipPlusModel, SpeechClipPlusProcessor)
    *files, pipelines = ROOTS
    auto_map = {
        auto: f"{file}.{kind.__name__}" for auto, file, kind in zip(_AUTO_CLASSES, files, classes, strict=True)
    }
    tasks = {
        task: {"impl": f"{pipelines}.{kind.__name__}", "pt": ["AutoModel"], "type": "multimodal"}
        for task, kind in PIPELINES.items()
    }
    return {"auto_map": auto_map, "custom_pipelines": tasks}


def remote_code_files() -> dict[str, str]:
    """Text of each file by its name; in the modules of one file a name must mean the same, as a test makes sure."""
    if IS_REMOTE:
        return {f"{name}.py": Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8") for name in ROOTS}
    groups = _grouped_modules()
    file_of = {module: file for file, modules in groups.items() for module in modules}
    return {f"{file}.py": _merged(file, modules, file_of) for file, modules in groups.items()}


def _set_entries(file: Path, entries: dict[str, Any]) -> None:
    if file.is_file():
        values = json.loads(file.read_text(encoding="utf-8"))
        changed = {key: value for key, value in values.items() if key not in _CONFIG_ENTRIES} | entries
        if changed != values:
            file.write_text(json.dumps(changed, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _grouped_modules() -> dict[str, list[str]]:
    """Modules of each file, each behind those that it imports."""
    groups: dict[str, list[str]] = {}
    seen: set[str] = set()

    def visit(module: str, group: list[str]) -> None:
        if module not in seen:
            seen.add(module)
            for node in _parsed(module)[1].body:  # what functions import may come later
                if isinstance(node, ast.ImportFrom) and node.level:
                    visit(_target(module, node), group)
            group.append(module)

    for file, root in ROOTS.items():
        groups[file] = []
        visit(root, groups[file])
    for group in groups.values():
        for module in list(group):
            for node in ast.walk(_parsed(module)[1]):
                if isinstance(node, ast.ImportFrom) and node.level:
                    visit(_target(module, node), group)
    return groups


def _parsed(module: str) -> tuple[str, ast.Module]:
    source = Path(str(import_module(module).__file__)).read_text(encoding="utf-8")
    return source, ast.parse(source)


def _target(module: str, node: ast.ImportFrom) -> str:
    return resolve_name("." * node.level + (node.module or ""), import_module(module).__package__)


def _merged(file: str, modules: list[str], file_of: dict[str, str]) -> str:
    """Text of a file: what each of its modules defines, without the imports of each other."""
    docstring = ast.get_docstring(_parsed(ROOTS[file])[1]) or file
    version = metadata.version("speechclip-plus")
    parts = [f'# A copy from speechclip-plus {version}: change it there, not here.\n"""{docstring}\n"""']
    if any("\nfrom __future__ import annotations\n" in _parsed(module)[0] for module in modules):
        parts.append("from __future__ import annotations")
    for module in modules:
        source, tree = _parsed(module)
        lines = source.splitlines()
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom):
                continue
            if node.module == "__future__":
                _replace(lines, node, "")
            elif node.level and (own := file_of[_target(module, node)]) != file:
                _replace(lines, node, f"from .{own} import {', '.join(map(ast.unparse, node.names))}")
            elif node.level:
                _replace(lines, node, "pass")
        if summary := ast.get_docstring(tree):
            _replace(lines, tree.body[0], f"# ---- {module.rpartition('.')[2]}: {summary.splitlines()[0]}")
        parts.append("\n".join(lines).strip())
    return re.sub(r"\n{4,}", "\n\n\n", "\n\n\n".join(parts)) + "\n"


def _replace(lines: list[str], node: ast.stmt, text: str) -> None:
    """Put a text in a statement's first line, and nothing in its others."""
    first, last = node.lineno - 1, node.end_lineno or node.lineno
    lines[first:last] = [" " * node.col_offset + text] + [""] * (last - first - 1)
