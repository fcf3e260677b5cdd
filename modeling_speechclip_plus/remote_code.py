"""The code that travels with a saved model, so that it loads where this package is not installed.

`AutoModel.from_pretrained(repo, trust_remote_code=True)` runs the Python files that lie beside the weights. They are
this package's own modules, put flat into one folder: what `from ..folder.module import x` says here is
`from .module import x` there. Nothing else about them differs, so nothing else can behave differently. A model that
was loaded in this way saves them again as they are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # transformers copies what it reaches from the model through relative imports, found by their text. From here it
    # reaches everything, so that a copied model still has its processor and pipelines to hand on.
    from .modeling_speechclip_plus import SpeechClipPlusModel  # noqa: F401
    from .pipelines.registry import PIPELINES  # noqa: F401
    from .processing_speechclip_plus import SpeechClipPlusProcessor  # noqa: F401

AUTO_MAP = {
    "AutoConfig": "configuration_speechclip_plus.SpeechClipPlusConfig",
    "AutoModel": "modeling_speechclip_plus.SpeechClipPlusModel",
    "AutoProcessor": "processing_speechclip_plus.SpeechClipPlusProcessor",
}
"""Which class of which file each of transformers' Auto classes finds; an entry of `config.json`."""

_RELATIVE_IMPORT = re.compile(r"^([ \t]*from )(\.+)([\w.]+)( import )", re.MULTILINE)
_MARK = "# A copy from speechclip-plus "


def remote_code_entries() -> dict[str, Any]:
    """Entries of `config.json` that say which class of which file serves each Auto class and each pipeline task."""
    from .pipelines.registry import PIPELINES

    tasks = {
        task: {"impl": f"{kind.__module__.split('.')[-1]}.{kind.__name__}", "pt": ["AutoModel"], "type": "multimodal"}
        for task, kind in PIPELINES.items()
    }
    return {"auto_map": dict(AUTO_MAP), "custom_pipelines": tasks}


@contextmanager
def noted(configuration: Any, entries: dict[str, Any]) -> Iterator[None]:
    """Within it, a configuration says which files hold the code of what is saved, or that none do.

    Args:
        configuration: The object that is written as `config.json` or `processor_config.json`.
        entries: What `remote_code_entries` returns, or a part of it; empty where no code goes along.
    """
    values = vars(configuration)
    before = {name: values.pop(name) for name in ("auto_map", "custom_pipelines") if name in values}
    values.update(entries)
    try:
        yield
    finally:
        for name in entries:
            values.pop(name, None)
        values.update(before)


def write_remote_code(folder: str | os.PathLike) -> list[Path]:
    """Write the modules that a saved model needs, each flat and marked with this package's version.

    Args:
        folder: The model's folder; files of the same names are replaced.

    Returns:
        The files written.
    """
    written = []
    for name, source in sorted(travelling_modules(Path(__file__)).items()):
        text = source.read_text(encoding="utf-8")
        if not text.startswith(_MARK):  # else it is a copy already, which says where it came from
            text = f"{_MARK}{metadata.version('speechclip-plus')}: change it there, not here.\n{_flat(text)}"
        file = Path(folder) / f"{name}.py"
        unfinished = file.with_name(f".{file.name}.tmp")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(file)
        written.append(file)
    return written


def travelling_modules(start: Path) -> dict[str, Path]:
    """Find all modules that a module reaches through relative imports, itself too.

    Returns:
        Files by their flat names.

    Raises:
        ValueError: If two of them would have the same flat name.
    """
    found = {start.stem: start}
    waiting = [start]
    while waiting:
        module = waiting.pop()
        for _, dots, name, _ in _RELATIVE_IMPORT.findall(module.read_text(encoding="utf-8")):
            file = module.parents[len(dots) - 1].joinpath(*name.split(".")).with_suffix(".py")
            known = found.setdefault(file.stem, file)
            if known != file:
                raise ValueError(f"{known} and {file} cannot travel in one folder: rename one of them.")
            if known is file:
                waiting.append(file)
    return found


def _flat(text: str) -> str:
    return _RELATIVE_IMPORT.sub(lambda found: f"{found[1]}.{found[3].rsplit('.', 1)[-1]}{found[4]}", text)
