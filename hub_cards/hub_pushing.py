"""Models and processors to the Hub, as `push_to_hub` does it."""

import json
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .hub_commit import WEIGHT_FILES, commit_files, full_repo_id, retrying
from .plain_card import is_generated_card, is_local_path, render_plain_card

BACKBONE_SOURCES = ("speech_backbone", "clip_backbone")
_PUSHING = (
    "repo_id",
    "commit_message",
    "commit_description",
    "private",
    "token",
    "revision",
    "tag",
    "create_pr",
    "tags",
)


def push_model(
    model: Any, repo_id: str, tags: Sequence[str] | str | None, saving: dict[str, Any], **commit: Any
) -> Any:
    """Save a model and send it in one commit; see `SpeechClipPlusModel.push_to_hub`.

    Args:
        model: A `SpeechClipPlusModel`.
        repo_id: `owner/name`, or a name of the token's owner's.
        tags: To add to the card's metadata.
        saving: Arguments of `save_pretrained`.
        **commit: See `commit_files`.
    """
    repo_id = full_repo_id(repo_id, commit.get("token"))
    wanted = [*(model.model_tags or []), *([tags] if isinstance(tags, str) else tags or [])]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, **saving)
        files = _files(folder)
        values = json.loads(files["config.json"].read_text(encoding="utf-8"))
        values, _ = portable_config(values)
        written = written_card(repo_id, "model", commit.get("revision"), commit.get("token"))
        # From what is sent, not from the model's own configuration, which may name folders of this machine.
        plain = render_plain_card(type(model.config).from_dict(values), repo_id, wanted)
        content: dict[str, Any] = {
            **files,
            "config.json": json.dumps(values, indent=2, sort_keys=True).encode() + b"\n",
            "README.md": (plain if written is None else card_with_tags(written, wanted)).encode(),
        }
        return commit_files(content, repo_id, delete_patterns=WEIGHT_FILES, **commit)


def push_processor(processor: Any, repo_id: str, saving: dict[str, Any], **commit: Any) -> Any:
    """Save a processor and send it in one commit; see `SpeechClipPlusProcessor.push_to_hub`."""
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder, **saving)
        return commit_files(_files(folder), repo_id, **commit)


def pushing_options(kwargs: dict[str, Any], save_directory: str | os.PathLike) -> dict[str, Any] | None:
    """Take what `save_pretrained(push_to_hub=True, ...)` says about pushing out of its arguments.

    Returns:
        Arguments of `push_to_hub`; None if nothing is to be pushed.
    """
    if not kwargs.pop("push_to_hub", False):
        return None
    options = {name: kwargs.pop(name) for name in _PUSHING if name in kwargs}
    return {"repo_id": Path(save_directory).name, **options}


def portable_config(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Take folders of this machine out of a configuration, where nothing depends on them.

    Args:
        values: Content of a `config.json`.

    Returns:
        values: The content to publish.
        removed: The folders that it named.

    Raises:
        ValueError: If a model without its backbones would look for them in a folder of this machine.
    """
    removed: list[str] = []

    def without_paths(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        kept = {}
        for name, value in part.items():
            if name == "_name_or_path" and isinstance(value, str) and is_local_path(value):
                removed.append(value)
            else:
                kept[name] = without_paths(value)
        return kept

    for name in BACKBONE_SOURCES:
        source = values.get(name)
        if not source or not is_local_path(source["repo_id"]):
            continue
        if not values.get("backbones_saved", True):
            raise ValueError(
                f"The model holds its trained part alone, and its {name.replace('_', ' ')} is a folder of this "
                f"machine ({source['repo_id']}), where nobody else can load it from. Save the model whole "
                "(save_backbones=True); or push that folder too and name the repository: "
                f'model.config.{name} = {{"repo_id": "owner/name", "revision": None}}.'
            )
        removed.append(source["repo_id"])
        values = {**values, name: None}
    return without_paths(values), sorted(set(removed))


def _files(folder: str) -> dict[str, Path]:
    root = Path(folder)
    return {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}


def written_card(repo_id: str, repo_type: str, revision: str | None, token: str | bool | None) -> str | None:
    """Return the card that somebody wrote for a repository; None if there is none but a generated one."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    where: dict[str, Any] = {"repo_id": repo_id, "repo_type": repo_type, "revision": revision}
    if not retrying(partial(api.file_exists, filename="README.md", **where)):
        return None
    file = retrying(partial(api.hf_hub_download, filename="README.md", **where))
    content = Path(file).read_text(encoding="utf-8")
    return None if is_generated_card(content) else content


def card_with_tags(content: str, tags: Sequence[str]) -> str:
    """Add tags to a card's metadata, those that it has not."""
    from huggingface_hub import ModelCard

    card: Any = ModelCard(content)  # its metadata are any that a card has
    missing = [tag for tag in tags if tag not in (card.data.tags or [])]
    if not missing:
        return content
    card.data.tags = [*(card.data.tags or []), *missing]
    return str(card)
