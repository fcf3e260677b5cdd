"""Pushes of folders to the Hub: checked for pickles, secrets and local paths, then sent in one commit."""

import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub.utils import validate_repo_id

from ..atomic_files import MANIFEST
from ..configuration.configuration_speechclip_plus import SpeechClipPlusConfig
from ..configuration.publication import CARD, make_portable, render_readme, send_folder
from ..remote_code import add_remote_code

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill")
_SECRET_FILES = (
    *(".env", ".env.*", ".netrc", ".npmrc", ".pypirc", ".git-credentials", "credentials", "credentials.json"),
    *("*.pem", "*.key", "*.p12", "*.pfx", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "stored_tokens"),
)
_SECRETS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "an AWS key": r"\bAKIA[0-9A-Z]{16}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})",
    "an API key": r"\bsk-[A-Za-z0-9_-]{32,}|\bxox[abprs]-[A-Za-z0-9-]{20,}|\bAIza[0-9A-Za-z_-]{35}",
    "a secret": r"\b(?:\w+_(?:API|SECRET|ACCESS)_KEY|\w+_PASSWORD|HF_TOKEN)\b[\"']?\s*[=:]\s*[\"']?[\w/+-]{16,}",
}
_VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json")
_PATH = re.compile(r"(?<![\w:/.~$<-])~?/[\w.+@-]+(?:/[\w.+@-]+)+|\b[A-Za-z]:\\{1,2}Users\\[^\s\"']+")
_SYSTEM = ("usr", "bin", "sbin", "lib", "lib64", "etc", "dev", "proc", "sys", "boot", "opt", "var")
_READ = 20_000_000  # bytes up to which texts are looked through
_NEVER = (".git", ".cache/*", "*__pycache__/*", "*.DS_Store", ".*.tmp", "*/.*.tmp", MANIFEST)


def push_folder(
    folder: str | os.PathLike, repo_id: str, *, ignore_patterns: Sequence[str] = (), **options: Any
) -> Any:
    """Send a folder to a repository on the Hub, which is made if it is not there.

    All is checked first and sent in one commit; push again after an interruption: what arrived is not sent again. The
    folder itself is only read (`prepared_folder` says what is sent in its place). A generated README.md never replaces
    one of the repository that somebody made their own; old weights under other names go in the same commit.

    Args:
        folder: What to send, without the files that `ignore_patterns` match.
        repo_id: `owner/name`, or a name of the token's owner's.
        ignore_patterns: Files to leave out.
        **options: `repo_type` is "model", "dataset" or "space". A branch `revision` is made if it is not there; `tag`
            names the commit. `private` (of a new repository), `token`, `commit_message`, `commit_description`,
            `create_pr` and `delete_patterns` are those of `huggingface_hub.HfApi`.

    Returns:
        `huggingface_hub.CommitInfo`.

    Raises:
        ValueError: If the folder holds what must not be published, a private repository is wanted and there is a
            public one, the tag exists, or the Hub does not take the card's metadata.
        OSError: If the Hub refuses or does not answer.
    """
    with prepared_folder(folder, repo_id, options.get("repo_type", "model"), ignore_patterns) as prepared:
        return send_folder(prepared, repo_id, **options)


@contextmanager
def prepared_folder(
    folder: str | os.PathLike, repo_id: str, repo_type: str = "model", ignore_patterns: Sequence[str] = ()
) -> Iterator[Path]:
    """Give a temporary folder with what `push_folder` sends: links to the files, and what is sent instead of some.

    A SpeechCLIP+ model gets the code by which it loads without this package, and a plain card if it has none.

    Raises:
        ValueError: If a file must not be published (it is named), no repository can be called so,
            or there is no such folder.
    """
    root = Path(folder).expanduser()
    validate_repo_id(repo_id)
    if not root.is_dir():
        raise ValueError(f"{root} is {'a file' if root.exists() else 'not there'}: name a folder to push.")
    with tempfile.TemporaryDirectory() as name:
        prepared = Path(name)
        for file in _files(root, ignore_patterns):
            _place(file, prepared / file.relative_to(root))
        if not any(prepared.iterdir()):
            raise ValueError(f"{root} holds nothing to push.")
        if repo_type == "model":
            make_portable(prepared)
            _complete_model(prepared, repo_id)
        for file in sorted(prepared.rglob("*")):
            if file.is_file():
                _check_file(file.relative_to(prepared).as_posix(), file)
        yield prepared


def _files(root: Path, ignore_patterns: Sequence[str]) -> Iterator[Path]:
    patterns = (*_NEVER, *ignore_patterns)
    for file in sorted(root.rglob("*")):
        name = file.relative_to(root).as_posix()
        if any(fnmatch(name, pattern) or fnmatch(name, f"{pattern}/*") for pattern in patterns):
            continue
        if file.is_symlink() and not file.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"{name} is a link out of the folder: put a copy in its place.")
        if file.is_file():
            yield file


def _place(file: Path, target: Path) -> None:
    """Link a file; those that may be changed on the way are copied."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.name in (CARD, "config.json", "processor_config.json") or target.suffix == ".py":
        shutil.copy(file, target)
    else:
        target.symlink_to(file.resolve())


def _complete_model(folder: Path, repo_id: str) -> None:
    """Add the code to a saved SpeechCLIP+ model, and a card if it has none."""
    file = folder / "config.json"
    values = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if values.get("model_type") == SpeechClipPlusConfig.model_type:
        add_remote_code(folder)
        if not (folder / CARD).is_file():
            card = render_readme(SpeechClipPlusConfig.from_dict(values), repo_id.split("/")[-1])
            (folder / CARD).write_text(card, encoding="utf-8")


def _check_file(name: str, path: Path) -> None:
    """Refuse a file that is a pickle, holds a secret, or names a folder of this machine; `name` is for the error."""
    base = path.name
    if any(fnmatch(base.lower(), pattern) for pattern in _SECRET_FILES):
        raise ValueError(f"{name} holds secrets, by its name: take it out of the folder.")
    if base.lower().endswith(_PICKLES) or _is_pickle(path):
        raise ValueError(
            f"{name} is a pickle, which runs code when it is loaded: save it as safetensors, or leave it out "
            "(ignore_patterns, --exclude)."
        )
    if path.stat().st_size > _READ or b"\0" in (content := path.read_bytes()):
        return
    text = content.decode("utf-8", errors="replace")
    for what, pattern in _SECRETS.items():
        if match := re.search(pattern, text):
            line = text.count("\n", 0, match.start()) + 1
            raise ValueError(f"{name}, line {line}, holds {what} ({match[0][:6]}...): remove it, and revoke it.")
    if base not in _VOCABULARIES and (local := sorted(filter(_is_local, _PATH.findall(text)))):
        raise ValueError(f"{name} names {local[0]}, a folder of this machine: take it out.")


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as stream:
        start = stream.read(128)
    if start.startswith(b"PK\x03\x04") and zipfile.is_zipfile(path):
        return any(name.endswith((".pkl", ".pickle")) for name in zipfile.ZipFile(path).namelist())
    is_object_array = start.startswith(b"\x93NUMPY") and re.search(rb"'\|?O'", start)
    return bool(re.match(rb"\x80[\x02-\x05]", start) or is_object_array)


def _is_local(path: str) -> bool:
    if re.match(r"(~/|/((home|Users)/[^/]+|root/)|[A-Za-z]:\\)", path):
        return True
    places = [Path.home(), Path.cwd(), Path(tempfile.gettempdir())]
    if any(len(place.parts) > 1 and Path(path).is_relative_to(place) for place in places):
        return True
    return path.split("/")[1] not in _SYSTEM and os.path.exists(path)
