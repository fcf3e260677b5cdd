"""What is wrong with publishing a file: a pickle, a secret, a folder of this machine, damage."""

import json
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

_TRAINING_STATE = ("optimizer.*", "scheduler.pt", "scaler.pt", "rng_state*", "training_args.bin", "trainer_state.json")
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
_STRAY = 100_000_000  # bytes
_TOO_LARGE = 50_000_000_000  # bytes that the Hub takes in one file
_WEIGHTS = (".safetensors", ".onnx", ".gguf")


def read_content(content: Path | bytes) -> bytes:
    """Bytes of a file, or of what is sent in its place."""
    return content if isinstance(content, bytes) else content.read_bytes()


def file_findings(name: str, content: Path | bytes, repo_type: str, resumes: bool = False) -> Iterator[str]:
    """Say what speaks against publishing a file, and what to do about it.

    Args:
        name: Its path in the repository.
        content: The file, or the content that is sent in its place.
        repo_type: "model", "dataset" or "space".
        resumes: Whether it may be a training's state.
    """
    base = name.rsplit("/", 1)[-1]
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if any(fnmatch(base.lower(), pattern) for pattern in _SECRET_FILES):
        yield "by its name it holds secrets; take it out of the folder."
        return
    if any(fnmatch(base, pattern) for pattern in _TRAINING_STATE):
        if not resumes:
            yield "a training's state, which no user of a model needs; leave it out (--exclude)."
        return
    if size > _TOO_LARGE:
        yield f"{size / 1e9:.0f} GB in one file, the Hub takes 50; save it in smaller parts (max_shard_size)."
    try:
        if pickled := _pickle(base, content):
            yield f"{pickled}, which runs code when loaded; save it as safetensors, or leave it out (--exclude)."
            return
        if base.endswith(".safetensors"):
            yield from _safetensors_findings(content)
            return
        if size > _STRAY and repo_type != "dataset" and not base.endswith(_WEIGHTS):
            yield f"{size / 1e6:.0f} MB that no model loads; leave it out (--exclude), or push it as a data set."
            return
        text = _text(content, size)
    except OSError as error:
        yield f"cannot be read ({error.strerror or error})."
        return
    if text is not None:
        yield from _text_findings(base, text)


def _pickle(base: str, content: Path | bytes) -> str | None:
    """Say what kind of pickle it is, by content and else by name; None if it is none."""
    if isinstance(content, bytes):
        return None
    with content.open("rb") as stream:
        start = stream.read(128)
    if re.match(rb"\x80[\x02-\x05]", start):
        return "a pickle"
    if start.startswith(b"PK\x03\x04") and zipfile.is_zipfile(content):
        with zipfile.ZipFile(content) as archive:
            if any(inside.endswith((".pkl", ".pickle")) for inside in archive.namelist()):
                return "an archive with a pickle, as torch.save writes it"
    if start.startswith(b"\x93NUMPY") and re.search(rb"'\|?O'", start):
        return "an array of pickled objects"
    return "by its name a pickle" if base.lower().endswith(_PICKLES) else None


def _safetensors_findings(content: Path | bytes) -> Iterator[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(content, "np") as weights:
            metadata = json.dumps(weights.metadata() or {})
    except SafetensorError as error:
        yield f"damaged or cut short ({error}); save it again."
        return
    yield from _text_findings("its metadata.json", metadata)


def _text(content: Path | bytes, size: int) -> str | None:
    """Return a text file's content; None for other files."""
    if size > _READ:
        return None
    data = read_content(content)
    if b"\0" in data:
        return None
    return data.decode("utf-8", errors="replace")


def _text_findings(base: str, text: str) -> Iterator[str]:
    for what, pattern in _SECRETS.items():
        if match := re.search(pattern, text):
            line = text.count("\n", 0, match.start()) + 1
            yield f"line {line} holds {what} ({match[0][:6]}...); remove it, and revoke it if others may have read it."
    if base in _VOCABULARIES:
        return
    paths = sorted({path for path in _PATH.findall(text) if _is_of_this_machine(path)})
    if paths:
        more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
        yield f"names folders of this machine ({', '.join(paths[:3])}{more}), which others do not have; take them out."


def _is_of_this_machine(path: str) -> bool:
    if re.match(r"(~/|/((home|Users)/[^/]+|root/)|[A-Za-z]:\\)", path):
        return True
    here = [Path.home(), Path.cwd(), Path(tempfile.gettempdir())]
    if any(len(place.parts) > 1 and Path(path).is_relative_to(place) for place in here):
        return True
    return path.split("/")[1] not in _SYSTEM and os.path.exists(path)
