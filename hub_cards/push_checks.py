"""Checks before publishing: pickles, secrets, and folders of this machine."""

import os
import re
import tempfile
import zipfile
from fnmatch import fnmatch
from pathlib import Path

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


class NotPublishableError(ValueError):
    """A folder holds what must not be published."""


def check_file(name: str, path: Path) -> None:
    """Check a file that is about to be published.

    Args:
        name: Its path in the repository, for the error.
        path: Where it is.

    Raises:
        NotPublishableError: If it is a pickle, holds a secret, or names a folder of this machine.
    """
    base = path.name
    if any(fnmatch(base.lower(), pattern) for pattern in _SECRET_FILES):
        raise NotPublishableError(f"{name} holds secrets, by its name: take it out of the folder.")
    if base.lower().endswith(_PICKLES) or _is_pickle(path):
        raise NotPublishableError(
            f"{name} is a pickle, which runs code when it is loaded: save it as safetensors, or leave it out "
            "(ignore_patterns, --exclude)."
        )
    if path.stat().st_size > _READ or b"\0" in (content := path.read_bytes()):
        return
    text = content.decode("utf-8", errors="replace")
    for what, pattern in _SECRETS.items():
        if match := re.search(pattern, text):
            line = text.count("\n", 0, match.start()) + 1
            raise NotPublishableError(
                f"{name}, line {line}, holds {what} ({match[0][:6]}...): remove it, and revoke it."
            )
    if base not in _VOCABULARIES and (local := sorted(filter(_is_local, _PATH.findall(text)))):
        raise NotPublishableError(f"{name} names {local[0]}, a folder of this machine: take it out.")


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
