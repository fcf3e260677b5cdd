"""Folders to the Hub: checked first, then sent in one commit."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, RepoCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import validate_repo_id

from ..configuration.configuration_speechclip_plus import SpeechClipPlusConfig
from ..configuration.publication import WEIGHT_FILES, is_generated, portable_config, render_readme
from ..remote_code import add_remote_code
from .push_checks import NotPublishableError, check_file

REPO_TYPES = ("model", "dataset", "space")
CARD = "README.md"
_NEVER = (".git", ".git/*", ".cache/*", "*__pycache__/*", "*.pyc", "*.DS_Store", ".*.tmp", "*/.*.tmp", ".unfinished/*")


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    repo_type: str = "model",
    private: bool | None = None,
    revision: str | None = None,
    tag: str | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    ignore_patterns: Sequence[str] = (),
    delete_patterns: Sequence[str] = (),
) -> Any:
    """Send a folder to a repository on the Hub, which is made if it is not there.

    Nothing is sent before all of it was checked. Readers then see all of it or nothing: there is one commit. Push
    again after an interruption: what arrived is not sent again. The folder itself is only read; `prepared_folder`
    says what is sent in place of it. A generated README.md never replaces one of the repository that somebody made
    their own. Weights that the repository held before under other names are removed by the same commit, since they
    could be loaded in place of the new ones.

    Args:
        folder: What to send.
        repo_id: `owner/name`, or a name of the token's owner's.
        repo_type: "model", "dataset" or "space".
        private: Whether a new repository is private; `None`: as the owner's settings say.
        revision: Branch, made from the main one if it is not there.
        tag: Name for the commit.
        token: `None` takes the one of `hf auth login` or `HF_TOKEN`.
        commit_message: First line of the commit's message.
        create_pr: Open a pull request instead.
        ignore_patterns: Files to leave out, such as `"checkpoint-*"`.
        delete_patterns: Files of the repository that go in the same commit if the folder does not hold them.

    Returns:
        `huggingface_hub.CommitInfo`: the address of the commit, with `repo_url` and `oid`.

    Raises:
        NotPublishableError: If the folder holds what must not be published.
        ValueError: If a private repository is wanted and there is a public one, the tag exists, or the Hub does not
            take the card's metadata.
        OSError: If the Hub refuses or does not answer.
    """
    with prepared_folder(folder, repo_id, repo_type, ignore_patterns) as prepared:
        return send_prepared(
            prepared,
            repo_id,
            repo_type=repo_type,
            private=private,
            revision=revision,
            tag=tag,
            token=token,
            commit_message=commit_message,
            create_pr=create_pr,
            delete_patterns=delete_patterns,
        )


@contextmanager
def prepared_folder(
    folder: str | os.PathLike, repo_id: str, repo_type: str = "model", ignore_patterns: Sequence[str] = ()
) -> Iterator[Path]:
    """Give a temporary folder that holds what `push_folder` sends: links to the files, and what is sent instead.

    A SpeechCLIP+ model gets the code by which it loads without this package, and a plain card if it has none; folders
    of this machine that its configuration does not depend on are left out.

    Raises:
        NotPublishableError: If a file must not be published; it names the file.
        ValueError: If the type is unknown, no repository can be called so, or there is no such folder.
    """
    root = Path(folder).expanduser()
    if repo_type not in REPO_TYPES:
        raise ValueError(f"repo_type={repo_type!r}: choose one of {', '.join(REPO_TYPES)}.")
    validate_repo_id(repo_id)
    if not root.is_dir():
        raise ValueError(f"{root} is {'a file' if root.exists() else 'not there'}: name a folder to push.")
    with tempfile.TemporaryDirectory() as name:
        prepared = Path(name)
        for file in _files(root, ignore_patterns):
            _place(file, prepared / file.relative_to(root))
        if not any(prepared.iterdir()):
            raise ValueError(f"{root} holds nothing to push.")
        if repo_type == "model" and (prepared / "config.json").is_file():
            prepare_model(prepared, repo_id)
        for file in sorted(prepared.rglob("*")):
            if file.is_file():
                check_file(file.relative_to(prepared).as_posix(), file)
        yield prepared


def send_prepared(
    prepared: Path,
    repo_id: str,
    *,
    repo_type: str = "model",
    private: bool | None = None,
    revision: str | None = None,
    tag: str | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    delete_patterns: Sequence[str] = (),
) -> Any:
    """Send what `prepared_folder` gave; see `push_folder`."""
    if create_pr and (tag or revision):
        raise ValueError("A pull request goes to the main branch and has no tag: leave revision and tag out.")
    api = HfApi(token=token)
    card = RepoCard.load(prepared / CARD) if (prepared / CARD).is_file() else None
    if card is not None:
        card.validate(repo_type)  # by the Hub's own rules, before there is a repository
    sdk = card.data.to_dict().get("sdk") if card is not None and repo_type == "space" else None
    repo_id = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=sdk).repo_id
    if private and not api.repo_info(repo_id, repo_type=repo_type).private:
        raise ValueError(
            f"The repository {repo_id} exists and is public, and a private one was asked for: nothing was sent. Make "
            "it private in its settings, or push to another repository."
        )
    if tag is not None and tag in {ref.name for ref in api.list_repo_refs(repo_id, repo_type=repo_type).tags}:
        raise ValueError(f"{repo_id} has a tag {tag!r} already: nothing was sent. Name another.")
    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
    where: dict[str, Any] = {"repo_id": repo_id, "repo_type": repo_type, "revision": revision}
    if card is not None:
        if is_generated(card.content) and _has_own_card(api, where):
            (prepared / CARD).unlink()
        elif repo_type == "model":
            (prepared / CARD).write_text(card_for_repository(card.content, repo_id), encoding="utf-8")
    has_weights = repo_type == "model" and any(any(prepared.glob(pattern)) for pattern in WEIGHT_FILES)
    done = api.upload_folder(
        folder_path=prepared,
        commit_message=commit_message or f"Upload {repo_type}",
        create_pr=create_pr,
        delete_patterns=[*delete_patterns, *(WEIGHT_FILES if has_weights else ())] or None,
        **where,
    )
    if tag is not None:
        api.create_tag(repo_id, tag=tag, revision=done.oid, repo_type=repo_type)
    return done


def _has_own_card(api: HfApi, where: dict[str, Any]) -> bool:
    """Whether a repository has a card that somebody made their own."""
    if not api.file_exists(filename=CARD, **where):
        return False
    return not is_generated(Path(api.hf_hub_download(filename=CARD, **where)).read_text(encoding="utf-8"))


def card_for_repository(card: str, repo_id: str) -> str:
    """Let a card's code load from a repository, where it loads the folder or run that the card is titled by."""
    block = REGEX_YAML_BLOCK.search(card)
    title = re.search(r"^# (.+)$", card[block.end() :] if block else card, re.MULTILINE)
    return card.replace(f'from_pretrained("{title[1].strip()}"', f'from_pretrained("{repo_id}"') if title else card


def _files(root: Path, ignore_patterns: Sequence[str]) -> Iterator[Path]:
    patterns = (*_NEVER, *ignore_patterns)
    for file in sorted(root.rglob("*")):
        name = file.relative_to(root).as_posix()
        if any(fnmatch(name, pattern) or fnmatch(name, f"{pattern}/*") for pattern in patterns):
            continue
        if file.is_symlink() and not file.resolve().is_relative_to(root.resolve()):
            raise NotPublishableError(f"{name} is a link out of the folder: put a copy in its place.")
        if file.is_file():
            yield file


def _place(file: Path, target: Path) -> None:
    """Link a file; those that may be changed on the way are copied."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.name in (CARD, "config.json", "processor_config.json") or target.suffix == ".py":
        shutil.copy(file, target)
    else:
        target.symlink_to(file.resolve())


def prepare_model(folder: Path, repo_id: str) -> None:
    """Make a saved model's folder one to publish: no folders of this machine, the code, and a card.

    Raises:
        NotPublishableError: If a model without its backbones would look for them in a folder of this machine.
    """
    file, card = folder / "config.json", folder / CARD
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        changed = portable_config(values)
    except ValueError as error:
        raise NotPublishableError(f"config.json: {error}") from error
    if changed != values:
        file.write_text(json.dumps(changed, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if values.get("model_type") == SpeechClipPlusConfig.model_type:
        add_remote_code(folder)
        if not card.is_file():
            name = repo_id.split("/")[-1]
            card.write_text(render_readme(SpeechClipPlusConfig.from_dict(changed), name), encoding="utf-8")
