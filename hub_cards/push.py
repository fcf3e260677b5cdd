"""A folder to the Hub: checked first, then sent in one commit."""

import json
import os
from collections.abc import Sequence
from fnmatch import fnmatch
from functools import partial
from typing import Any

from ..configuration.configuration_speechclip_plus import SpeechClipPlusConfig
from .file_findings import read_content
from .hub_commit import WEIGHT_FILES, check_repo_id, commit_files, full_repo_id, retrying
from .hub_pushing import written_card
from .model_card import card_for_repository
from .plain_card import is_generated_card, render_plain_card
from .push_checks import Publication, check_publishable

REPO_TYPES = ("model", "dataset", "space")


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
    commit_description: str | None = None,
    create_pr: bool = False,
    ignore_patterns: Sequence[str] = (),
    delete_patterns: Sequence[str] = (),
    training_state: Sequence[str] = (),
) -> Any:
    """Send a folder to a repository on the Hub, which is made if it is not there.

    Nothing is sent before all of it was checked (see `check_publishable`). Readers then see all of it or nothing:
    there is one commit. What arrived before an interruption is not sent again; failures of the server are waited for;
    what others commit meanwhile stays (see `commit_files`). The folder itself is only read. A model without a
    README.md gets one of what its configuration says; a generated README.md never replaces one of the repository that
    somebody wrote or changed. Weights that the repository held before under other names are
    removed by the same commit, since they could be loaded in place of the new ones.

    Args:
        folder: What to send.
        repo_id: `owner/name`, or a name of the token's owner's.
        repo_type: "model", "dataset" or "space".
        private: Whether a new repository is private; `None`: as the owner's settings say.
        revision: Branch, made from the main one if it is not there.
        tag: Name for the commit.
        token: `None` takes the one of `hf auth login` or `HF_TOKEN`.
        commit_message: First line of the commit's message.
        commit_description: The rest of it.
        create_pr: Open a pull request instead.
        ignore_patterns: Files to leave out, such as `"checkpoint-*"`.
        delete_patterns: Files of the repository that go in the same commit if the folder does not hold them.
        training_state: Folders in which a training's state, with its pickles, may be sent.

    Returns:
        `huggingface_hub.CommitInfo`: the address of the commit, with `repo_url` and `oid`.

    Raises:
        NotPublishableError: If the folder holds what must not be published; it lists all of it.
        ValueError: If a private repository is wanted and there is a public one, the tag exists, somebody changed the
            same files meanwhile, or the Hub does not take the card's metadata.
        OSError: If the Hub refuses or does not answer.
    """
    publication = prepare_publication(folder, repo_id, repo_type, ignore_patterns, training_state)
    return send_publication(
        publication,
        repo_id,
        repo_type=repo_type,
        private=private,
        revision=revision,
        tag=tag,
        token=token,
        commit_message=commit_message or f"Upload {repo_type}",
        commit_description=commit_description,
        create_pr=create_pr,
        delete_patterns=delete_patterns,
    )


def prepare_publication(
    folder: str | os.PathLike,
    repo_id: str,
    repo_type: str = "model",
    ignore_patterns: Sequence[str] = (),
    training_state: Sequence[str] = (),
) -> Publication:
    """Check a folder and say what `push_folder` sends, without sending it.

    Raises:
        NotPublishableError: As `push_folder`.
        ValueError: If the type is unknown, or there is no such folder.
    """
    if repo_type not in REPO_TYPES:
        raise ValueError(f"repo_type={repo_type!r}: choose one of {', '.join(REPO_TYPES)}.")
    check_repo_id(repo_id)
    publication = check_publishable(folder, repo_type, ignore_patterns, training_state)
    if repo_type == "model" and "README.md" not in publication.files and "config.json" in publication.files:
        values = json.loads(read_content(publication.files["config.json"]))
        if values.get("model_type") == SpeechClipPlusConfig.model_type:
            card = render_plain_card(SpeechClipPlusConfig.from_dict(values), repo_id)
            publication.files["README.md"] = card.encode()
            publication.notes.append("README.md: not there; unless the repository has one, a plain one is sent")
    elif repo_type == "model" and "README.md" in publication.files:
        card = read_content(publication.files["README.md"]).decode("utf-8")
        if (named := card_for_repository(card, repo_id)) != card:
            publication.files["README.md"] = named.encode()
            publication.notes.append(f"README.md: its code loads {repo_id}, in place of the name that it had here")
    return publication


def send_publication(
    publication: Publication, repo_id: str, *, repo_type: str, delete_patterns: Sequence[str] = (), **commit: Any
) -> Any:
    """Send what was checked; see `push_folder` for the arguments and `commit_files` for the rest."""
    import huggingface_hub

    repo_id = full_repo_id(repo_id, commit.get("token"))
    files, space_sdk = dict(publication.files), None
    if "README.md" in files:
        content = read_content(files["README.md"]).decode("utf-8")
        if is_generated_card(content) and written_card(
            repo_id, repo_type, commit.get("revision"), commit.get("token")
        ):
            del files["README.md"]
        else:
            card = huggingface_hub.RepoCard(content)
            retrying(partial(card.validate, repo_type))  # by the Hub's own rules, before there is a repository
            space_sdk = card.data.to_dict().get("sdk") if repo_type == "space" else None
    if repo_type == "model" and any(fnmatch(name, pattern) for name in files for pattern in WEIGHT_FILES):
        delete_patterns = (*delete_patterns, *WEIGHT_FILES)
    return commit_files(
        files, repo_id, repo_type=repo_type, delete_patterns=delete_patterns, space_sdk=space_sdk, **commit
    )
