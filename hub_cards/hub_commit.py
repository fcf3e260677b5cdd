"""Files to a repository on the Hub in one commit, which is made whole or not at all."""

import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from typing import Any, TypeVar

from transformers.utils import logging

logger = logging.get_logger(__name__)

WEIGHT_FILES = ("model*.safetensors", "model.safetensors.index.json")
"""Names by which a model's weights are found; of an older model none may stay beside new ones."""

_ATTEMPTS = 5
_FIRST_WAIT = 1.0  # seconds; doubled after every failure
_TRANSIENT_STATUS = (408, 429, 500, 502, 503, 504)
_TRANSIENT_ERRORS = {"TimeoutException", "NetworkError", "RemoteProtocolError"}

Files = Mapping[str, str | os.PathLike | bytes]
Result = TypeVar("Result")


def commit_files(
    files: Files,
    repo_id: str,
    *,
    repo_type: str = "model",
    private: bool | None = None,
    revision: str | None = None,
    tag: str | None = None,
    token: str | bool | None = None,
    commit_message: str = "Upload",
    commit_description: str | None = None,
    create_pr: bool = False,
    delete_patterns: Sequence[str] = (),
    space_sdk: str | None = None,
) -> Any:
    """Send files to a repository, which is made if it is not there.

    Readers see all of the files or none: there is one commit, made when every large file has arrived. What arrived
    before an interruption is not sent again. Failures of the server and the network are waited for. If somebody else
    commits meanwhile, their files stay, and this commit is put on top of theirs unless both changed the same file.

    Args:
        files: Paths in the repository, each with a file of this machine or the content itself.
        repo_id: `owner/name`; without an owner the token's.
        repo_type: "model", "dataset" or "space".
        private: Whether a new repository is private; `None`: as the owner's settings say.
        revision: Branch to commit to, made from the main one if it is not there.
        tag: Name for the commit.
        token: As in `huggingface_hub`; `None` takes the one of `hf auth login` or `HF_TOKEN`.
        commit_message: First line of the commit's message.
        commit_description: The rest of it.
        create_pr: Open a pull request instead of committing to the branch.
        delete_patterns: Files of the repository that go in the same commit if they are not among `files`.
        space_sdk: Of a new Space.

    Returns:
        `huggingface_hub.CommitInfo` of the commit; of the last one if the repository held exactly these files before.

    Raises:
        ValueError: If a private repository is wanted and there is a public one, the tag exists, or somebody changed
            the same files meanwhile.
        huggingface_hub.errors.HfHubHTTPError: If the Hub refuses.
    """
    from huggingface_hub import HfApi

    if create_pr and (tag or revision):
        raise ValueError("A pull request goes to the main branch and has no tag: leave revision and tag out.")
    repo_id = open_repository(repo_id, repo_type=repo_type, private=private, token=token, space_sdk=space_sdk)
    api, where = HfApi(token=token), {"repo_id": repo_id, "repo_type": repo_type}
    message = {"commit_message": commit_message, "commit_description": commit_description}
    with _explaining_refusals(repo_id):
        if create_pr:
            operations = _additions(files)
            return retrying(partial(api.create_commit, **where, operations=operations, create_pr=True, **message))
        if revision is not None and not revision.startswith("refs/"):
            retrying(partial(api.create_branch, **where, branch=revision, exist_ok=True))
        head = _head(api, where, revision)
        tagged = None if tag is None else _tags(api, where).get(tag)
        if tagged is not None and not (tagged == head and _holds(api, where, head, files)):
            raise ValueError(
                f"{repo_id} has a tag {tag!r} already, of commit {tagged[:7]}: nothing was sent. Name another."
            )
        done = _commit_to_branch(api, where, revision, head, files, delete_patterns, message)
        if tag is not None:
            retrying(partial(_tag, api, where, tag, done.oid))
        return done


def open_repository(
    repo_id: str,
    *,
    repo_type: str = "model",
    private: bool | None = None,
    token: str | bool | None = None,
    space_sdk: str | None = None,
) -> str:
    """Make a repository if it is not there; return its full name.

    Raises:
        ValueError: If a private repository is wanted and there is a public one.
        PermissionError: If the token may not write there.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    made: dict[str, Any] = {"repo_type": repo_type, "private": private, "exist_ok": True, "space_sdk": space_sdk}
    with _explaining_refusals(repo_id):
        repo_id = retrying(partial(api.create_repo, repo_id, **made)).repo_id
        if private and not retrying(partial(api.repo_info, repo_id, repo_type=repo_type)).private:
            raise ValueError(
                f"The repository {repo_id} exists and is public, and a private one was asked for: nothing was sent. "
                "Make it private in its settings, or push to another repository."
            )
    return repo_id


@contextmanager
def _explaining_refusals(repo_id: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        if _status(error) not in (401, 403):
            raise
        raise PermissionError(
            f"The Hub does not let you write to {repo_id} ({_status(error)}). Log in with `hf auth login`, or set "
            "HF_TOKEN, with a token that may write there."
        ) from error


def check_repo_id(repo_id: str) -> None:
    """Raise a ValueError if a repository cannot be called so."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"{repo_id!r} is no name of a repository: give OWNER/NAME, or a NAME of your own, of letters, digits, "
            "'-', '_' and '.'."
        ) from error


def full_repo_id(repo_id: str, token: str | bool | None = None) -> str:
    """Put the token's owner before a repository's name, if no owner is named."""
    from huggingface_hub import HfApi

    return repo_id if "/" in repo_id else f"{retrying(HfApi(token=token).whoami)['name']}/{repo_id}"


def _commit_to_branch(
    api: Any,
    where: Mapping[str, Any],
    revision: str | None,
    head: str,
    files: Files,
    delete_patterns: Sequence[str],
    message: Mapping[str, Any],
) -> Any:
    """Commit on top of `head`, or of what others put there meanwhile."""
    from huggingface_hub import CommitOperationDelete

    def commit() -> Any:
        nonlocal head
        gone = [path for path in _matching(api, where, head, delete_patterns) if path not in files]
        # Made anew for every attempt: they remember what the repository held.
        operations = [*(CommitOperationDelete(path) for path in gone), *_additions(files)]
        try:
            return api.create_commit(**where, operations=operations, revision=revision, parent_commit=head, **message)
        except Exception as error:
            if not (_is_conflict(error) or _is_transient(error)):
                raise
            moved = _head(api, where, revision)
            if moved != head:  # by others; or by this very commit, whose answer was lost
                _check_only_others_files_changed(api, where, head, moved, {**dict.fromkeys(gone), **files}, error)
                head = moved
            raise

    return retrying(commit)


def retrying(call: Callable[[], Result]) -> Result:
    """Call, and call again after a while if the server or the network failed, up to five times."""
    wait = _FIRST_WAIT
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return call()
        except Exception as error:
            if attempt == _ATTEMPTS and type(error).__name__ == "ConnectError":
                raise ConnectionError(f"The Hub cannot be reached ({error}): is there a network?") from error
            if attempt == _ATTEMPTS or not (_is_conflict(error) or _is_transient(error)):
                raise
            logger.warning("The Hub failed (%s); trying again in %g s.", " ".join(str(error).split())[:200], wait)
            time.sleep(wait)
            wait *= 2
    raise AssertionError("unreachable")


def _is_transient(error: BaseException | None) -> bool:
    """Whether a failure may be gone in a moment: of the server or of the network, not of what was asked."""
    while error is not None:
        if _status(error) in _TRANSIENT_STATUS or _TRANSIENT_ERRORS & {base.__name__ for base in type(error).__mro__}:
            return True
        error = error.__cause__ if isinstance(error, RuntimeError) else None  # so it is told of one file among many
    return False


def _is_conflict(error: BaseException) -> bool:
    """Whether a commit was refused because there are newer ones."""
    return _status(error) == 412


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _additions(files: Files) -> list[Any]:
    from huggingface_hub import CommitOperationAdd

    return [
        CommitOperationAdd(path, content if isinstance(content, bytes) else os.fspath(content))
        for path, content in files.items()
    ]


def _head(api: Any, where: Mapping[str, Any], revision: str | None) -> str:
    return retrying(partial(api.repo_info, **where, revision=revision or "main")).sha


def _tags(api: Any, where: Mapping[str, Any]) -> dict[str, str]:
    return {ref.name: ref.target_commit for ref in retrying(partial(api.list_repo_refs, **where)).tags}


def _tag(api: Any, where: Mapping[str, Any], tag: str, commit: str) -> None:
    tagged = _tags(api, where).get(tag)
    if tagged is None:
        api.create_tag(**where, tag=tag, revision=commit)
    elif tagged != commit:
        raise ValueError(
            f"The files are in commit {commit[:7]}, but the tag {tag!r} was given to {tagged[:7]} before."
        )


def _entries(api: Any, where: Mapping[str, Any], commit: str) -> dict[str, str]:
    """Paths of a commit's files, each with the hash by which its content is known: sha256 of large ones, or git's."""
    tree = api.list_repo_tree(**where, revision=commit, recursive=True)
    return {
        item.path: item.lfs.sha256 if item.lfs is not None else item.blob_id
        for item in tree
        if hasattr(item, "blob_id")
    }


def _holds(api: Any, where: Mapping[str, Any], commit: str, files: Files) -> bool:
    entries = _entries(api, where, commit)
    return all(entries.get(path) in _hashes(content) for path, content in files.items())


def _matching(api: Any, where: Mapping[str, Any], commit: str, patterns: Sequence[str]) -> list[str]:
    if not patterns:
        return []
    return [path for path in _entries(api, where, commit) if any(fnmatch(path, pattern) for pattern in patterns)]


def _check_only_others_files_changed(
    api: Any,
    where: Mapping[str, Any],
    old: str,
    new: str,
    changed: Mapping[str, str | os.PathLike | bytes | None],
    error: Exception,
) -> None:
    before, now = _entries(api, where, old), _entries(api, where, new)
    both = [
        path
        for path, content in changed.items()
        if before.get(path) != now.get(path) and now.get(path) not in _hashes(content)
    ]
    if both:
        raise ValueError(
            f"While this was being sent, somebody else changed {', '.join(sorted(both)[:5])} in {where['repo_id']} "
            f"(commit {new[:7]}): nothing of theirs was overwritten, nothing of yours is there. Look at theirs, then "
            "push again, or to another revision."
        ) from error


def _hashes(content: str | os.PathLike | bytes | None) -> set[str | None]:
    """Hashes by which the Hub may know a content; of `None`, a deleted file, that there is none."""
    if content is None:
        return {None}
    size = len(content) if isinstance(content, bytes) else os.path.getsize(content)
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    with io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb") as stream:
        while block := stream.read(2**20):
            sha256.update(block)
            git.update(block)
    return {sha256.hexdigest(), git.hexdigest()}
