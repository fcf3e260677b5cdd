"""Reading a pickled checkpoint as data, without running anything that it asks for.

A pickle names functions and classes and says what to call them with, so loading a stranger's file is running a
stranger's program. Here nothing is imported on a file's behalf: the few names that tensors and plain containers need
stand for functions of this module, objects of other packages (callbacks, loggers, namespaces) become records of their
attributes, and any other name ends the reading.
"""

from __future__ import annotations

import _compat_pickle
import codecs
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

# Packages whose objects the original's checkpoints carry along. Even a call of one of their names is only recorded.
ORIGINAL_PACKAGES = {
    "avssl", "fairseq", "hydra", "lightning", "lightning_fabric", "omegaconf", "pytorch_lightning", "tensorboard",
    "torchmetrics", "wandb",
}  # fmt: skip
# Harmless classes of the standard library that namespaces and loggers hold; recorded as well.
_RECORDED = {
    ("argparse", "Namespace"), ("types", "SimpleNamespace"), ("datetime", "date"), ("datetime", "datetime"),
    ("datetime", "timedelta"), ("datetime", "timezone"), ("logging", "Logger"), ("logging", "RootLogger"),
    ("logging", "StreamHandler"), ("logging", "getLogger"), ("pathlib", "Path"), ("pathlib", "PosixPath"),
    ("pathlib", "PurePath"), ("pathlib", "PurePosixPath"), ("pathlib", "PureWindowsPath"), ("pathlib", "WindowsPath"),
    ("uuid", "UUID"), ("numpy", "ndarray"), ("torch", "device"), ("torch", "Generator"),
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
}  # fmt: skip
_REFUSED_PACKAGES = sys.stdlib_module_names | {"numpy", "torch", "torchvision", "torchaudio", "transformers", "scipy"}
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6


class UnsafeCheckpointError(ValueError):
    """A checkpoint asks for something that is no data."""


def read_checkpoint(path: str | os.PathLike, on_bytes: Callable[[int], Any] | None = None) -> dict[str, Any]:
    """Read a checkpoint written by `torch.save`; its tensors stay on disk until they are used.

    Args:
        path: A zip-format file, which `torch.save` writes since PyTorch 1.6.
        on_bytes: Called with the number of bytes whenever some were checked, for a progress bar.

    Returns:
        What was saved. Tensors are mapped into memory, objects of classes are [`Record`]s.

    Raises:
        UnsafeCheckpointError: If it asks for anything but data; the message names what.
        ValueError: If it is no such file, or damaged.
        OSError: If it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; a checkpoint is a file such as epoch_12-step_28794.ckpt.")
    _check_archive(path, on_bytes or (lambda _: None))
    try:
        restricted = SimpleNamespace(Unpickler=_DataUnpickler, __name__=__name__)
        content = torch.load(str(path), map_location="cpu", mmap=True, weights_only=False, pickle_module=restricted)
    except UnsafeCheckpointError as error:
        raise UnsafeCheckpointError(f"{path} was not read: {error}") from None
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is damaged or no checkpoint of torch.save: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, where a checkpoint holds a dictionary.")
    return dict(content)


def plain(value: Any) -> Any:
    """Turn records and containers, nested as they may be, into dictionaries, lists and plain values."""
    return _plain(value, ())


class Record:
    """What an object of a class that was not imported consists of: its attributes and items, as data.

    Attributes:
        arguments: What its class was called with.
        state: Its attributes, or what its class would have restored them from.
        items: Entries, if it is a list, a set or a dictionary.
    """

    module = ""
    name = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Record:
        """Make a record; unpickling does so without calling its class."""
        self = object.__new__(cls)
        self.arguments = (*args, *kwargs.values())
        self.state: Any = None
        self.items: list[Any] = []
        return self

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, item: Any) -> None:
        """Take an item of a list."""
        self.items.append(item)

    add = append

    def extend(self, items: list[Any]) -> None:
        """Take several items of a list."""
        self.items.extend(items)

    def __repr__(self) -> str:
        return f"<record of {self.module}.{self.name}>"


class _RecordClass(type):
    """Class of a record's class: unpickling may make records of any class, but not call any name."""

    callable = False

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if not cls.callable:
            raise UnsafeCheckpointError(
                f"it asks to call {cls.module}.{cls.name}, which may do anything; a checkpoint holds data only."
            )
        return super().__call__(*args, **kwargs)


class _DataUnpickler(pickle.Unpickler):
    """Resolves every name that a pickle asks for to something that cannot do harm, or refuses it."""

    def find_class(self, module: str, name: str) -> Any:
        # Python 2 pickles, which protocols below 3 imitate, have other names for the same.
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        if (found := _SAFE.get((module, name))) is not None:
            return found
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        package = module.partition(".")[0]
        recorded = (module, name) in _RECORDED
        if not recorded and (package in _REFUSED_PACKAGES or not package):
            raise UnsafeCheckpointError(f"it asks for {module}.{name}, which is no data; it may be an attack.")
        calls = recorded or package in ORIGINAL_PACKAGES
        return _RecordClass(name, (Record,), {"module": module, "name": name, "callable": calls})


def _check_archive(path: Path, on_bytes: Callable[[int], Any]) -> None:
    """Refuse what torch.load would treat as something else than a pickle with tensors beside it."""
    with path.open("rb") as file:
        start = file.read(len(_LEGACY_MAGIC))
    if not zipfile.is_zipfile(path):
        if start == _LEGACY_MAGIC:
            raise ValueError(
                f"{path} is in the format of PyTorch before 1.6. Load it with a PyTorch that you trust it with, and "
                "save it again with torch.save."
            )
        if start[:1] == b"\x80":  # a bare pickle: say what it asks for, if it is that
            with path.open("rb") as file:
                try:
                    _DataUnpickler(file).load()
                except UnsafeCheckpointError as error:
                    raise UnsafeCheckpointError(f"{path} was not read: {error}") from None
                except Exception:
                    pass  # reported below
        raise ValueError(
            f"{path} is no checkpoint of torch.save, or only the beginning of one ({path.stat().st_size:,} bytes). "
            "Download it again."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            names = {record.filename.partition("/")[2] for record in records}
            if "data.pkl" not in names:
                raise ValueError(f"{path} is a zip archive, but not one of torch.save: it has no data.pkl.")
            if "constants.pkl" in names:
                raise UnsafeCheckpointError(f"{path} was not read: it is a TorchScript program, which is no data.")
            for record in records:
                if record.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{path} has the compressed entry {record.filename}; torch.save compresses none.")
                # Newer versions of torch.save can leave checksums out.
                if record.CRC and not _matches_checksum(archive, record, on_bytes):
                    raise ValueError(f"{path} is damaged at its entry {record.filename}. Download it again.")
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path} is a damaged archive: {error}. Download it again.") from error


def _matches_checksum(archive: zipfile.ZipFile, record: zipfile.ZipInfo, on_bytes: Callable[[int], Any]) -> bool:
    try:
        with archive.open(record) as file:
            while chunk := file.read(1 << 20):
                on_bytes(len(chunk))
    except zipfile.BadZipFile:
        return False
    return True


# What stands for the names that tensors and plain containers are pickled by. Functions, so that nothing a pickle does
# to them reaches the real ones.


class _Function:
    """Calls a function, and cannot be changed, which a pickle may try."""

    __slots__ = ("_function",)

    def __init__(self, function: Any):
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise UnsafeCheckpointError(f"it asks to change {self._function.__name__}.")


def _encode(text: str, encoding: str) -> bytes:
    return codecs.encode(text, "latin1" if encoding == "latin1" else "utf-8")


def _rebuild_tensor(storage: Any, offset: int, size: tuple, stride: tuple, *_: Any) -> torch.Tensor:
    return torch._utils._rebuild_tensor(storage, offset, size, stride)


def _rebuild_parameter(data: torch.Tensor, *_: Any) -> torch.Tensor:
    return data


def _new_object(cls: Any, *args: Any) -> Any:
    if not (isinstance(cls, type) and issubclass(cls, Record)):
        raise UnsafeCheckpointError(f"it asks to make a {cls!r}.")
    return cls.__new__(cls, *args)


def _new_object_with_keywords(cls: Any, args: tuple, kwargs: Mapping) -> Any:
    return _new_object(cls, *args, *kwargs.values())


def _reconstruct(cls: Any, base: Any, state: Any) -> Any:
    record = _new_object(cls)
    record.items = list(state.items()) if isinstance(state, dict) else list(state or ())
    return record


def _get_attribute(owner: Any, name: str) -> Any:
    raise UnsafeCheckpointError(f"it asks for the attribute {name} of {owner!r}, which is no data.")


class _NumpyDtype:
    """The dtype of a pickled numpy scalar."""

    def __init__(self, name: str, *_: Any):
        self.name, self.byte_order = name, "="

    def __setstate__(self, state: tuple) -> None:
        self.byte_order = state[1]


def _numpy_scalar(dtype: _NumpyDtype, data: bytes) -> Any:
    resolved = np.dtype(dtype.name)
    if resolved.kind not in "biufcSU":
        raise UnsafeCheckpointError(f"it asks for a numpy {dtype.name!r}, which can hold anything.")
    if dtype.byte_order in "<>":
        resolved = resolved.newbyteorder(dtype.byte_order)
    return np.frombuffer(data, resolved, count=1)[0].item()


_SAFE: dict[tuple[str, str], Any] = {
    **{
        ("builtins", kind.__name__): _Function(kind)
        for kind in (set, frozenset, list, dict, tuple, int, float, complex, bool, str, bytes, bytearray, slice)
    },
    ("builtins", "object"): _RecordClass("object", (Record,), {"module": "builtins", "name": "object"}),
    ("builtins", "getattr"): _Function(_get_attribute),
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): _Function(lambda *_: {}),
    ("collections", "Counter"): _Function(lambda *entries: dict(*entries)),
    ("collections", "deque"): _Function(lambda items=(), *_: list(items)),
    ("_codecs", "encode"): _Function(_encode),
    ("copyreg", "_reconstructor"): _Function(_reconstruct),
    ("copyreg", "__newobj__"): _Function(_new_object),
    ("copyreg", "__newobj_ex__"): _Function(_new_object_with_keywords),
    ("torch", "Size"): _Function(tuple),
    ("torch._utils", "_rebuild_tensor"): _Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_rebuild_parameter),
    ("numpy", "dtype"): _Function(_NumpyDtype),
    ("numpy.core.multiarray", "scalar"): _Function(_numpy_scalar),
    ("numpy._core.multiarray", "scalar"): _Function(_numpy_scalar),
}


def _plain(value: Any, above: tuple[int, ...]) -> Any:
    if id(value) in above:
        return None  # an object that holds itself
    above = (*above, id(value))
    if isinstance(value, Record):
        state = value.state[0] if isinstance(value.state, tuple) and len(value.state) == 2 else value.state
        entries = [*state.items()] if isinstance(state, Mapping) else []
        entries += [item for item in value.items if isinstance(item, tuple) and len(item) == 2]
        return _plain(dict(entries), above) if entries else _plain(list(value.arguments), above)
    if isinstance(value, Mapping):
        return {str(key): _plain(entry, above) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(entry, above) for entry in value]
    return value
