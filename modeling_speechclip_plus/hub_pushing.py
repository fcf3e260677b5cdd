"""Models and processors to the Hub, as `push_to_hub` does it."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .hub_commit import WEIGHT_FILES, commit_files, full_repo_id
from .plain_card import is_local_path, is_plain_card, render_plain_card

BACKBONE_SOURCES = ("speech_backbone", "clip_backbone")


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
    token, revision = commit.get("token"), commit.get("revision")
    repo_id = full_repo_id(repo_id, token)
    wanted = [*(model.model_tags or []), *([tags] if isinstance(tags, str) else tags or [])]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, **saving)
        files = _files(folder)
        values = json.loads(files["config.json"].read_text(encoding="utf-8"))
        values, _ = portable_config(values)
        card = _card_with_tags(repo_id, revision, token, wanted)
        if card is None:
            # From what is sent, not from the model's own configuration, which may name folders of this machine.
            config = type(model.config).from_dict(values)
            card = render_plain_card(config, repo_id, wanted)
        content = {
            **files,
            "config.json": json.dumps(values, indent=2, sort_keys=True).encode() + b"\n",
            **({"README.md": card.encode()} if card else {}),
        }
        return commit_files(content, repo_id, replaces=WEIGHT_FILES, **commit)


def push_processor(processor: Any, repo_id: str, saving: dict[str, Any], **commit: Any) -> Any:
    """Save a processor and send it in one commit; see `SpeechClipPlusProcessor.push_to_hub`."""
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder, **saving)
        return commit_files(_files(folder), repo_id, **commit)


def portable_config(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Take folders of this machine out of a configuration, where nothing depends on them.

    Args:
        values: Content of a `config.json`.

    Returns:
        values: The content to publish.
        removed: What was taken out, `"speech_backbone (/home/...)"`.

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
                removed.append(f"{name} ({value})")
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
        removed.append(f"{name} ({source['repo_id']})")
        values = {**values, name: None}
    return without_paths(values), removed


def _files(folder: str) -> dict[str, Path]:
    root = Path(folder)
    return {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}


def _card_with_tags(repo_id: str, revision: str | None, token: str | bool | None, tags: Sequence[str]) -> str | None:
    """Return the repository's card with tags added; empty if nothing is to be changed, None if there is no card."""
    from huggingface_hub import HfApi, ModelCard

    api = HfApi(token=token)
    if not api.file_exists(repo_id, "README.md", revision=revision):
        return None
    content = Path(api.hf_hub_download(repo_id, "README.md", revision=revision)).read_text(encoding="utf-8")
    if is_plain_card(content):
        return None
    card = ModelCard(content)
    missing = [tag for tag in tags if tag not in (card.data.tags or [])]
    if not missing:
        return ""
    card.data.tags = [*(card.data.tags or []), *missing]
    return str(card)
