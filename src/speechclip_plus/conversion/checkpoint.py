"""Checkpoints of the original research code, read without executing anything that their pickles ask for.

`torch.load(weights_only=True)` reads them. What the original's checkpoints hold besides tensors and plain containers
(its namespaces, Lightning's callbacks, loggers) is replaced by inert stubs; any other name is refused. As a few bytes
of a pickle can ask for any amount of memory or time, a child process with limits on both loads the file first.
"""

import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

_ORIGINAL_PACKAGES = {
    "avssl", "fairseq", "hydra", "lightning", "lightning_fabric", "omegaconf", "pytorch_lightning", "tensorboard",
    "torchmetrics", "wandb",
}  # fmt: skip
_NUMPY = {
    f"numpy.{name}" for name in (
        "dtype", "ndarray", "core.multiarray.scalar", "_core.multiarray.scalar", "core.multiarray._reconstruct",
        "_core.multiarray._reconstruct",
    )
}  # fmt: skip
_STANDARD_LIBRARY = {  # harmless classes that namespaces, callbacks and loggers hold
    "argparse.Namespace", "builtins.dict", "builtins.frozenset", "builtins.list", "collections.defaultdict",
    "datetime.date", "datetime.datetime", "datetime.timedelta", "datetime.timezone", "logging.Logger",
    "logging.RootLogger", "logging.StreamHandler", "logging.getLogger", "pathlib.Path", "pathlib.PosixPath",
    "pathlib.PurePath", "pathlib.PurePosixPath", "pathlib.PureWindowsPath", "pathlib.WindowsPath",
    "types.SimpleNamespace", "uuid.UUID",
}  # fmt: skip
_MAX_SECONDS = 30  # of processor time; a checkpoint's pickle takes less than one
_MAX_MEMORY = 1 << 30  # beyond the mapped file
_MAX_EXPANDED = 1 << 20  # bytes of a tensor that repeats the numbers that the file holds
_MAX_TEXT = 200  # characters of a name or message from the file


class UnsafeCheckpointError(ValueError):
    """A checkpoint asks for something other than data."""


class Checkpoint(NamedTuple):
    """What a conversion needs of a Lightning checkpoint.

    Attributes:
        state_dict: Dense tensors by their names.
        hyper_parameters: Dictionaries, lists and plain values; objects are dictionaries of their attributes.
    """

    state_dict: dict[str, torch.Tensor]
    hyper_parameters: Any


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Read a checkpoint written by `torch.save`; its tensors stay on disk until they are used.

    Raises:
        UnsafeCheckpointError: if it asks for anything but data; the message says what.
        ValueError: if it is no such file, is damaged, or takes more time or memory than any checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; a checkpoint is a file such as epoch_12-step_28794.ckpt.")
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is no checkpoint of torch.save since PyTorch 1.6, or only the beginning of one "
            f"({path.stat().st_size:,} bytes)."
        )
    try:
        _check_archive(path)
        _check_in_child(path)
        return _load(path)
    except pickle.UnpicklingError as error:
        # torch advises to load the file unsafely before it says what is wrong.
        reason = str(error).rpartition("WeightsUnpickler error: ")[2]
        raise UnsafeCheckpointError(f"{path} was not read: {reason.strip()[:_MAX_TEXT]}") from None
    except OSError:
        raise
    except Exception as error:
        reason = str(error)[:_MAX_TEXT] or type(error).__name__
        raise ValueError(f"{path} is damaged or no checkpoint of the original: {reason}") from error


def _check_archive(path: Path) -> None:
    """Verify what `torch.load(mmap=True)` does not: that entries are stored as they are, and their checksums."""
    with zipfile.ZipFile(path) as archive:
        if sum(record.file_size for record in archive.infolist()) > path.stat().st_size:
            raise ValueError("its entries overlap or are compressed")
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"its entry {record.filename[:_MAX_TEXT]} is compressed")
            if record.CRC:  # torch.save can leave checksums out
                with archive.open(record) as entry:
                    while entry.read(1 << 20):  # raises if the checksum is another one
                        pass


def _check_in_child(path: Path) -> None:
    """Load the file in a forked process with limits, so that nothing in it can exhaust or crash this one."""
    if not hasattr(os, "fork"):  # Windows
        return
    try:
        with ProcessPoolExecutor(1, get_context("fork"), _set_limits, (path.stat().st_size,)) as pool:
            pool.submit(_can_load, path).result()
    except BrokenProcessPool:
        raise ValueError(f"reading it crashes, or takes more than {_MAX_SECONDS} s or {_MAX_MEMORY:,} bytes") from None


def _set_limits(file_size: int) -> None:
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (_MAX_SECONDS, _MAX_SECONDS))
    if sys.platform == "linux":  # others do not tell what is in use, nor heed this limit
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = in_use + file_size + _MAX_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _can_load(path: Path) -> bool:
    _load(path)
    return True


def _load(path: Path) -> Checkpoint:
    names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    stubs: list[Any] = [(_stub(name), name) for name in names]
    with torch.serialization.safe_globals(stubs):
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, where a checkpoint holds a dictionary")
    with zipfile.ZipFile(path) as archive:
        sizes = {record.file_size for record in archive.infolist()}
    return Checkpoint(_state_dict(content, sizes), plain(content.get("hyper_parameters")))


def _state_dict(content: dict[str, Any], sizes: set[int]) -> dict[str, torch.Tensor]:
    """Check that a state dict holds named tensors, each of as many numbers as an entry of the file (`sizes`) has."""
    state = content.get("state_dict")
    if not isinstance(state, dict) or not state:
        names = ", ".join(repr(name)[:_MAX_TEXT] for name in list(content)[:5] if isinstance(name, str))
        raise ValueError(f"it holds no state_dict, which a Lightning checkpoint has; it holds {names}")
    for name, value in dict.items(state):
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            shown = repr(name)[:_MAX_TEXT] if isinstance(name, str) else "a name"
            raise ValueError(f"it holds in its state_dict {shown}, a {type(value).__name__} and no dense tensor")
        if len(name) > _MAX_TEXT or not name.isprintable():
            raise ValueError(f"it holds a tensor called {name[:_MAX_TEXT]!r}...")
        held = value.untyped_storage().nbytes()
        if held not in sizes or value.nbytes > max(held, _MAX_EXPANDED):
            raise ValueError(f"{name} has the shape {tuple(value.shape)}, but {held:,} bytes in the file")
    return dict(dict.items(state))


def _stub(name: str) -> type:
    if name in _NUMPY:
        return _OpaqueStub
    if name.partition(".")[0] in _ORIGINAL_PACKAGES or name in _STANDARD_LIBRARY:
        return _Stub
    raise pickle.UnpicklingError(f"it asks for {name[:_MAX_TEXT]}, which is no data; it may be an attack.")


class _Stub:
    """Stand-in for classes and functions: makes a dictionary, to which unpickling adds attributes and items."""

    def __new__(cls, *args: Any) -> OrderedDict[str, Any]:  # type: ignore[misc]
        return OrderedDict()  # the only type that torch fills with both


class _OpaqueStub:
    """Stand-in for numpy's types, whose state is no dictionary."""

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def plain(value: Any, _above: frozenset[int] = frozenset()) -> Any:
    """Turn stubs and containers, nested as they may be, into dictionaries with text keys, lists and plain values."""
    if id(value) in _above:
        return None  # an object that holds itself
    above = _above | {id(value)}
    if isinstance(value, dict):
        entries = [*getattr(value, "__dict__", {}).items(), *dict.items(value)]
        return {key: plain(entry, above) for key, entry in entries if isinstance(key, str)}
    if isinstance(value, list | tuple | set):
        return [plain(entry, above) for entry in value]
    return value
