"""Which files of a folder go to the Hub, and what must not: pickles, secrets, what only works on this machine."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from .file_findings import file_findings, read_content
from .hub_pushing import portable_config
from .plain_card import is_local_path

_CLASSES = {"model": "ModelCard", "dataset": "DatasetCard", "space": "SpaceCard"}
_NEVER = (".git", ".git/*", ".cache/*", "*__pycache__/*", "*.pyc", "*.DS_Store", ".*.tmp", "*/.*.tmp", ".unfinished/*")


class NotPublishableError(ValueError):
    """A folder holds what must not be published.

    Attributes:
        folder: The folder.
        findings: What was found, one line each: the file, what is wrong, what to do.
    """

    def __init__(self, folder: Path, findings: Sequence[str]) -> None:
        self.folder, self.findings = folder, list(findings)
        super().__init__(f"{folder} cannot be published, nothing was sent:\n- " + "\n- ".join(self.findings))


@dataclass
class Publication:
    """What of a folder is sent.

    Attributes:
        files: Paths in the repository, each with the file, or with the content where it is not sent as it is.
        left_out: Paths in the folder that are not sent.
        notes: What was changed on the way.
    """

    files: dict[str, Path | bytes] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_publishable(
    folder: str | os.PathLike,
    repo_type: str = "model",
    ignore_patterns: Sequence[str] = (),
    training_state: Sequence[str] = (),
) -> Publication:
    """Look through all that a folder would send.

    Args:
        folder: The folder; it is only read.
        repo_type: "model", "dataset" or "space".
        ignore_patterns: Files to leave out, such as `"checkpoint-*"`; those of version control and caches always are.
        training_state: Folders in which a training's state, with its pickles, is allowed to be.

    Returns:
        What to send. Folders of this machine that a `config.json` names without depending on them are taken out of
        it; otherwise files are sent as they are.

    Raises:
        NotPublishableError: Lists everything that must not be sent: pickles, by name and by content; secrets;
            folders of this machine; a training's state; links out of the folder; damaged or incomplete weights; large
            files that no model loads; metadata that the Hub would not take.
        ValueError: If it is no folder, or there is nothing in it.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(f"{root} is {'a file' if root.exists() else 'not there'}: name a folder to push.")
    publication, findings = Publication(), []
    for name, path in _files(root):
        if any(fnmatch(name, pattern) or fnmatch(name, f"{pattern}/*") for pattern in (*_NEVER, *ignore_patterns)):
            publication.left_out.append(name)
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
            findings.append(f"{name}: a link to {path.resolve()}, outside of the folder; put a copy in its place.")
        elif not path.is_file():
            findings.append(f"{name}: a link to nothing; remove it.")
        else:
            publication.files[name] = path
    if not publication.files and not findings:
        raise ValueError(f"{root} holds nothing to push.")
    _clean_config(publication, findings)
    for name, content in publication.files.items():
        resumes = any(name.startswith(f"{state}/") for state in training_state)
        findings.extend(f"{name}: {finding}" for finding in file_findings(name, content, repo_type, resumes))
    if repo_type == "model":
        findings.extend(_weight_findings(publication.files))
    findings.extend(_card_findings(publication.files, repo_type))
    if findings:
        raise NotPublishableError(root, findings)
    return publication


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    """All files and links of a folder, sorted; links to folders are not followed."""
    for place, folders, names in os.walk(root):
        folders.sort()
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in sorted([*names, *links]):
            path = Path(place) / name
            yield path.relative_to(root).as_posix(), path


def _clean_config(publication: Publication, findings: list[str]) -> None:
    path = publication.files.get("config.json")
    if path is None:
        return
    try:
        values = json.loads(read_content(path))
        cleaned, removed = portable_config(values)
    except json.JSONDecodeError as error:
        findings.append(f"config.json: is no JSON ({error}); write it again with save_pretrained.")
    except (ValueError, TypeError) as error:
        findings.append(f"config.json: {error}")
    else:
        if removed:
            publication.files["config.json"] = json.dumps(cleaned, indent=2, sort_keys=True).encode() + b"\n"
            publication.notes.append(f"config.json: left out folders of this machine: {', '.join(removed)}")


def _weight_findings(files: dict[str, Path | bytes]) -> Iterator[str]:
    weights = [name for name in files if fnmatch(name, "model*.safetensors")]
    if weights and "config.json" not in files:
        yield "config.json: not there, so that the weights cannot be loaded; write both with save_pretrained."
    index = files.get("model.safetensors.index.json")
    if index is None:
        if "config.json" in files and "model.safetensors" not in files:
            yield "model.safetensors: there is a config.json but no weights; write both with save_pretrained."
        return
    try:
        parts = set(json.loads(read_content(index))["weight_map"].values())
    except (ValueError, KeyError, AttributeError):
        yield "model.safetensors.index.json: cannot be read; save the model again."
        return
    if missing := sorted(parts - files.keys()):
        yield f"model.safetensors.index.json: names {', '.join(missing)}, not there; save the model again."
    if "model.safetensors" in files:
        yield "model.safetensors: of another save than model.safetensors.index.json; remove the older one."


def _card_findings(files: dict[str, Path | bytes], repo_type: str) -> Iterator[str]:
    import huggingface_hub

    if "README.md" not in files:
        if repo_type == "space":
            yield "README.md: a Space needs one that says which `sdk` runs it."
        return
    try:
        card = getattr(huggingface_hub, _CLASSES[repo_type])(read_content(files["README.md"]).decode("utf-8"))
        data: dict[str, Any] = card.data.to_dict()
    except Exception as error:  # of YAML, of missing fields, of a result without a value: whatever the parser meets
        yield f"README.md: its metadata is not valid ({' '.join(str(error).split())})."
        return
    for name in ("base_model", "datasets"):
        values = data.get(name) or []
        for value in [values] if isinstance(values, str) else values:
            if is_local_path(str(value)):
                yield f"README.md: {name} is a folder of this machine ({value}); name a repository, or leave it out."
    if repo_type == "space" and not data.get("sdk"):
        yield "README.md: a Space needs `sdk` in its metadata, for instance `sdk: gradio`."
