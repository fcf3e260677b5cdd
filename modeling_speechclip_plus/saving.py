"""Saved models: what lies beside the weights, and how a model or processor is pushed."""

import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard

from ..configuration.publication import WEIGHT_FILES, portable_config, render_readme
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
    """Write what a saved model holds beside its weights and configuration. A README.md that is there stays."""
    folder = Path(folder)
    for name, content in _SENTENCE_TRANSFORMERS.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if not (folder / "README.md").exists():
        readme = render_readme(config, folder.resolve().name)
        (folder / "README.md").write_text(readme, encoding="utf-8")
    write_code(folder, "config.json", remote_code)


def write_code(folder: str | os.PathLike, config_name: str, remote_code: bool) -> None:
    """Write the code into a saved folder, or take what refers to it out of one of its JSON files."""
    (add_remote_code if remote_code else remove_code_entries)(folder, [config_name])


def pushing_options(kwargs: dict[str, Any], save_directory: str | os.PathLike) -> dict[str, Any] | None:
    """Take the arguments of `push_to_hub` out of those of `save_pretrained(push_to_hub=True, ...)`; None without."""
    if not kwargs.pop("push_to_hub", False):
        return None
    names = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")
    return {"repo_id": Path(save_directory).name, **{name: kwargs.pop(name) for name in names if name in kwargs}}


def push_saved(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    config: Any = None,
    tags: list[str] | str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
) -> Any:
    """Push what `save_pretrained` wrote to `folder`, in one commit.

    `repo_id` is `owner/name`, or a name of your own; the repository is made if it is not there, and so is the branch
    `revision`. `config` is that of a model, for its card, to which `tags` are added; folders of this machine are taken
    out of its `config.json`. `private` (of a new repository), `token`, `create_pr`, `commit_message` and
    `commit_description` are those of `huggingface_hub.HfApi`.

    Returns:
        `huggingface_hub.CommitInfo`, the address of the commit.

    Raises:
        ValueError: If a model without its backbones would look for them in a folder of this machine, or a private
            repository is wanted and there is a public one.
        OSError: If the Hub refuses or does not answer.
    """
    folder, tags = Path(folder), [tags] if isinstance(tags, str) else list(tags or ())
    if (file := folder / "config.json").is_file():
        values = portable_config(json.loads(file.read_text(encoding="utf-8")))
        file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        config = type(config).from_dict(values)  # the model's own may name folders of this machine
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if private and not api.repo_info(repo_id).private:
        raise ValueError(f"The repository {repo_id} exists and is public, and a private one was asked for.")
    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    if config is not None:
        if api.file_exists(repo_id, "README.md", revision=revision):
            path = api.hf_hub_download(repo_id, "README.md", revision=revision)
            card = with_tags(Path(path).read_text(encoding="utf-8"), tags)
        else:
            card = render_readme(config, repo_id, tags)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message,
        commit_description=commit_description,
        delete_patterns=None if config is None else list(WEIGHT_FILES),
    )


def with_tags(card: str, tags: list[str]) -> str:
    """Add tags to a card's metadata, those that it has not."""
    parsed: Any = ModelCard(card)  # its metadata are any that a card has
    missing = [tag for tag in tags if tag not in (parsed.data.tags or [])]
    if not missing:
        return card
    parsed.data.tags = [*(parsed.data.tags or []), *missing]
    return str(parsed)
