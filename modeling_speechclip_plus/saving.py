"""Saved models: what lies beside the weights, and how a model or processor is pushed."""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.utils import validate_repo_id

from ..configuration.publication import CARD, make_portable, render_readme, send_folder
from ..remote_code import add_remote_code, remove_code_entries

_SENTENCE_TRANSFORMERS = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    ],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {
            modality: {"method": f"get_{modality}_features", "method_output_name": "pooler_output"}
            for modality in ("text", "image", "audio")
        },
        "module_output_name": "sentence_embedding",
    },
    "config_sentence_transformers.json": {
        "model_type": "SentenceTransformer",
        "similarity_fn_name": "cosine",
        "prompts": {},
        "default_prompt_name": None,
    },
}
"""Files by which sentence-transformers loads the same folder."""


def write_model_files(folder: str | os.PathLike, config: Any, remote_code: bool = False) -> None:
    """Write what a saved model holds beside its weights and configuration; a README.md that is there stays."""
    folder = Path(folder)
    for name, content in _SENTENCE_TRANSFORMERS.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if not (folder / CARD).exists():
        (folder / CARD).write_text(render_readme(config, folder.resolve().name), encoding="utf-8")
    write_code(folder, "config.json", remote_code)


def write_code(folder: str | os.PathLike, config_name: str, remote_code: bool) -> None:
    """Write the code into a saved folder, or take what refers to it out of one of its JSON files."""
    (add_remote_code if remote_code else remove_code_entries)(folder, [config_name])


def pushing_options(kwargs: dict[str, Any], save_directory: str | os.PathLike) -> dict[str, Any] | None:
    """Take what `save_pretrained(push_to_hub=True, ...)` says about pushing out of its arguments.

    Returns:
        Arguments of `push_to_hub`; None if nothing is to be pushed.
    """
    if not kwargs.pop("push_to_hub", False):
        return None
    names = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")
    return {"repo_id": Path(save_directory).name, **{name: kwargs.pop(name) for name in names if name in kwargs}}


def push_saved(save: Callable[..., Any], repo_id: str, tags: Sequence[str] | str | None = None, **options: Any) -> Any:
    """Push what `save(folder, remote_code=True)` writes, in one commit.

    `repo_id` is `owner/name`, or a name of your own; the repository is made if it is not there, and so is the branch
    `revision`. `tags` are added to a model's card; folders of this machine are taken out of its `config.json`.
    `private` (of a new repository), `token`, `create_pr`, `commit_message` and `commit_description` are those
    of `huggingface_hub.HfApi`.

    Returns:
        `huggingface_hub.CommitInfo`, the address of the commit.

    Raises:
        ValueError: If a model without its backbones would look for them in a folder of this machine, or a private
            repository is wanted and there is a public one.
        OSError: If the Hub refuses or does not answer.
    """
    validate_repo_id(repo_id)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, repo_id.split("/")[-1])  # the plain card is titled by it
        save(folder, remote_code=True)
        make_portable(folder)
        return send_folder(folder, repo_id, tags=[tags] if isinstance(tags, str) else tags or (), **options)
