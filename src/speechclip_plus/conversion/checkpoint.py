"""Reading a pickled checkpoint as data, without running anything that it asks for.

A pickle names functions and classes and says what to call them with, so loading a stranger's file is running a
stranger's program. Here nothing is imported on a file's behalf: the few names that tensors and plain containers need
stand for functions of this module, objects of other packages (callbacks, loggers, namespaces) become records of their
attributes, and any other name ends the reading.
"""

from __future__ import annotations

import _compat_pickle
import codecs
import ctypes
import io
import math
import mmap
import os
import pickle
import pickletools
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
}  # fmt: skip
# A few bytes of a pickle can ask for any amount of memory; these are far above what a checkpoint needs.
_MAX_PICKLE_SIZE = 16 << 20
_MAX_CLASSES = 10_000
_MAX_REPEATED = 1 << 20  # numbers of a tensor that is larger than what the file holds of it
_MAX_ENTRIES, _MAX_DEPTH = 1_000_000, 200
_MEMO = {"PUT", "BINPUT", "LONG_BINPUT"}
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
    storages, pickled = _open_archive(path, on_bytes or (lambda _: None))
    try:
        content = _unpickle(io.BytesIO(pickled), storages)
    except UnsafeCheckpointError as error:
        raise UnsafeCheckpointError(f"{path} was not read: {error}") from None
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} is damaged or no checkpoint of torch.save: {reason}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, where a checkpoint holds a dictionary.")
    return dict(content)


def plain(value: Any) -> Any:
    """Turn records and containers, nested as they may be, into dictionaries, lists and plain values.

    Raises:
        ValueError: If they are nested very deeply, or hold one another so often that it would not end.
    """
    return _Plain()(value)


def let_go(tensor: torch.Tensor) -> None:
    """Give the memory back that reading took of a tensor from `read_checkpoint`; the next reading finds it on disk.

    Only for tensors that came from there, and views of them: any other would lose its values. Without a system call
    for it (Windows), nothing happens.
    """
    if not hasattr(mmap, "MADV_DONTNEED") or tensor.numel() == 0:
        return
    storage = tensor.untyped_storage()
    start = -(-storage.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages: their neighbours' ends stay
    length = (storage.data_ptr() + storage.nbytes() - start) // mmap.PAGESIZE * mmap.PAGESIZE
    if length > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


class Record:
    """What an object of a class that was not imported consists of: its attributes and items, as data.

    Attributes:
        arguments: What its class was called with.
        state: Its attributes, or what its class would have restored them from.
        items: Entries, if it is a list, a set or a dictionary.
    """

    module = ""
    name = ""
    arguments: tuple[Any, ...]
    state: Any
    items: list[Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Record:
        """Make a record; unpickling does so without calling its class."""
        self = object.__new__(cls)
        self.arguments = (*args, *kwargs.values())
        self.state = None
        self.items = []
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

    module: str
    name: str
    callable = False

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if not cls.callable:
            raise UnsafeCheckpointError(
                f"it asks to call {cls.module}.{cls.name}, which may do anything; a checkpoint holds data only."
            )
        return super().__call__(*args, **kwargs)


class _DataUnpickler(pickle.Unpickler):
    """Resolves every name that a pickle asks for to something that cannot do harm, or refuses it."""

    def __init__(self, file: io.BytesIO, storages: _Storages | None):
        super().__init__(file, encoding="utf-8")
        self._storages = storages
        self._classes: dict[tuple[str, str], type] = {}

    def persistent_load(self, saved_id: Any) -> Any:
        """Find the storage that stands outside of the pickle."""
        return None if self._storages is None else self._storages.find(saved_id)

    def find_class(self, module: str, name: str) -> Any:
        # Python 2 pickles, which protocols below 3 imitate, have other names for the same.
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        if (found := _SAFE.get((module, name))) is not None:
            return found
        if module in ("torch", "torch.cuda", "torch.storage") and name in _DTYPES:
            return _StorageType(_DTYPES[name])
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        package = module.partition(".")[0]
        recorded = (module, name) in _RECORDED
        if not recorded and (package in _REFUSED_PACKAGES or not package):
            raise UnsafeCheckpointError(f"it asks for {module}.{name}, which is no data; it may be an attack.")
        calls = recorded or package in ORIGINAL_PACKAGES
        if (module, name) not in self._classes:
            if len(self._classes) == _MAX_CLASSES:
                raise ValueError("it names more classes than any checkpoint does")
            about = {"module": module, "name": name, "callable": calls}
            self._classes[module, name] = _RecordClass(name, (Record,), about)
        return self._classes[module, name]


class _StorageType(NamedTuple):
    """What a pickle calls torch.FloatStorage and the like."""

    dtype: torch.dtype


class _Storage(NamedTuple):
    """A stretch of the file, as numbers of one kind."""

    content: torch.UntypedStorage
    dtype: torch.dtype


class _Storages:
    """The tensors' bytes in a file, which are mapped and not read."""

    def __init__(self, path: Path, places: Mapping[str, tuple[int, int]]):
        self._mapped = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
        self._places = places
        self._found: dict[str, torch.UntypedStorage] = {}

    def find(self, saved_id: Any) -> _Storage:
        if not (isinstance(saved_id, tuple) and len(saved_id) == 5 and saved_id[0] == "storage"):
            raise ValueError("it names something outside of the pickle that is no storage of numbers")
        _, kind, key, _, count = saved_id
        if not (isinstance(kind, _StorageType) and isinstance(key, str) and isinstance(count, int)):
            raise ValueError("it describes a storage by something else than its kind, name and size")
        start, length = self._places.get(f"data/{key}", (0, -1))
        if count * kind.dtype.itemsize != length:
            what = "is not in the file" if length < 0 else f"holds {length:,} bytes of {count * kind.dtype.itemsize:,}"
            raise ValueError(f"its entry data/{key} {what}")
        if key not in self._found:
            self._found[key] = self._mapped[start : start + length]
        return _Storage(self._found[key], kind.dtype)


def _unpickle(file: io.BytesIO, storages: _Storages | None) -> Any:
    """Read the next pickle of a file in memory."""
    start, size = file.tell(), len(file.getbuffer())
    # The table of what is used again grows to the largest index, whatever stands at it.
    if any(code.name in _MEMO and (index or 0) > size for code, index, _ in pickletools.genops(file)):
        raise ValueError("it numbers more objects than it has room for")
    file.seek(start)
    return _DataUnpickler(file, storages).load()


def _open_archive(path: Path, on_bytes: Callable[[int], Any]) -> tuple[_Storages, bytes]:
    """Check an archive of torch.save; returns its storages and the pickle beside them.

    Nothing else reads the archive: another reader could find other entries in the same file, such as a TorchScript
    program, which torch.load would run.
    """
    if not zipfile.is_zipfile(path):
        _refuse_bare_pickle(path)
    places: dict[str, tuple[int, int]] = {}
    folder = None
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            names = [record.filename.partition("/")[2] for record in records]
            if "constants.pkl" in names:
                raise UnsafeCheckpointError(f"{path} was not read: it is a TorchScript program, which is no data.")
            if "data.pkl" not in names:
                raise ValueError(f"{path} is a zip archive, but not one of torch.save: it has no data.pkl.")
            for record, name in zip(records, names, strict=True):
                folder = record.filename.partition("/")[0] if folder is None else folder
                if record.filename != f"{folder}/{name}" or name in places:
                    raise ValueError(f"{path} has the entry {record.filename} twice, or beside those of torch.save.")
                if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
                    raise ValueError(
                        f"{path} has the compressed or encrypted entry {record.filename}; torch.save makes none."
                    )
                # Newer versions of torch.save can leave checksums out.
                if record.CRC and not _matches_checksum(archive, record, on_bytes):
                    raise ValueError(f"{path} is damaged at its entry {record.filename}. Download it again.")
                places[name] = _place(path, record)
            if sum(length for _, length in places.values()) > path.stat().st_size:
                raise ValueError(f"{path} is a damaged archive: its entries overlap. Download it again.")
            if (length := places["data.pkl"][1]) > _MAX_PICKLE_SIZE:
                raise ValueError(f"{path} has a data.pkl of {length:,} bytes, which no checkpoint has.")
            if "byteorder" in places and archive.read(f"{folder}/byteorder").decode() != sys.byteorder:
                raise ValueError(f"{path} comes from a machine of the other byte order; save it again on this.")
            return _Storages(path, places), archive.read(f"{folder}/data.pkl")
    except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is a damaged archive: {error}. Download it again.") from error


def _refuse_bare_pickle(path: Path) -> None:
    """Say what a file that is no archive asks for, if it is a pickle, and that it is no checkpoint."""
    size = path.stat().st_size
    with path.open("rb") as file:
        content = io.BytesIO(file.read(_MAX_PICKLE_SIZE))
    is_legacy = content.getvalue().startswith(_LEGACY_MAGIC)
    try:
        while content.tell() < size:  # the old format has several, one after the other
            _unpickle(content, None)
    except UnsafeCheckpointError as error:
        raise UnsafeCheckpointError(f"{path} was not read: {error}") from None
    except Exception:
        pass  # reported below
    if is_legacy:
        raise ValueError(
            f"{path} is in the format of PyTorch before 1.6. Load it with a PyTorch that you trust it with, and "
            "save it again with torch.save."
        )
    raise ValueError(
        f"{path} is no checkpoint of torch.save, or only the beginning of one ({size:,} bytes). Download it again."
    )


def _place(path: Path, record: zipfile.ZipInfo) -> tuple[int, int]:
    """Where an entry's content starts in the file, and its length."""
    with path.open("rb") as file:
        file.seek(record.header_offset)
        header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04" or record.file_size != record.compress_size:
        raise zipfile.BadZipFile(f"bad header of {record.filename}")
    start = record.header_offset + 30 + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    if start + record.file_size > path.stat().st_size:
        raise zipfile.BadZipFile(f"{record.filename} ends behind the file's end")
    return start, record.file_size


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
    _function: Any

    def __init__(self, function: Any):
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise UnsafeCheckpointError(f"it asks to change {getattr(self._function, '__name__', 'a function')}.")


def _encode(text: str, encoding: str) -> bytes:
    return codecs.encode(text, "latin1" if encoding == "latin1" else "utf-8")


def _bytes_of(kind: type, *args: Any) -> Any:
    if args and isinstance(args[0], int):  # would make as many zeros
        raise UnsafeCheckpointError(f"it asks for {args[0]:,} empty bytes, which are no data.")
    return kind(*args)


def _text(text: str = "", *_: Any) -> str:
    if not isinstance(text, str):  # would write it all out
        raise UnsafeCheckpointError(f"it asks for a {type(text).__name__} as text, which is no data.")
    return text


def _rebuild_tensor(storage: _Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> torch.Tensor:
    if not isinstance(storage, _Storage):
        raise ValueError("it builds a tensor of something else than the numbers in the file")
    held = storage.content.nbytes() // storage.dtype.itemsize
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    count = math.prod(size)
    is_negative = any(number < 0 for number in (offset, *size, *stride))
    if is_negative or (count > 0 and last >= held) or count > max(held, _MAX_REPEATED):
        raise ValueError(f"it builds a tensor of the shape {tuple(size)} of {held:,} numbers")
    return torch.empty(0, dtype=storage.dtype).set_(storage.content, offset, tuple(size), tuple(stride))


def _rebuild_parameter(data: torch.Tensor, *_: Any) -> torch.Tensor:
    return data


def _new_object(cls: Any, *args: Any) -> Any:
    if not (isinstance(cls, type) and issubclass(cls, Record)):
        raise UnsafeCheckpointError(f"it asks to make a {getattr(cls, '__name__', type(cls).__name__)}.")
    return cls.__new__(cls, *args)


def _new_object_with_keywords(cls: Any, args: tuple, kwargs: Mapping) -> Any:
    return _new_object(cls, *args, *kwargs.values())


def _reconstruct(cls: Any, base: Any, state: Any) -> Any:
    record = _new_object(cls)
    record.items = list(state.items()) if isinstance(state, dict) else list(state or ())
    return record


def _get_attribute(owner: Any, name: str) -> Any:
    kind = repr(owner) if isinstance(owner, type | _Function) else f"a {type(owner).__name__}"  # not all it holds
    name = name if isinstance(name, str) else type(name).__name__
    raise UnsafeCheckpointError(f"it asks for the attribute {name} of {kind}, which is no data.")


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
        resolved = resolved.newbyteorder(">" if dtype.byte_order == ">" else "<")
    return np.frombuffer(data, resolved, count=1)[0].item()


_SAFE: dict[tuple[str, str], Any] = {
    **{
        ("builtins", kind.__name__): _Function(kind)
        for kind in (set, frozenset, list, dict, tuple, int, float, complex, bool, slice)
    },
    ("builtins", "str"): _Function(_text),
    ("builtins", "bytes"): _Function(partial(_bytes_of, bytes)),
    ("builtins", "bytearray"): _Function(partial(_bytes_of, bytearray)),
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


class _Plain:
    """Turns records into plain containers; what a few bytes make endless is cut off with an error."""

    def __init__(self):
        self._above: set[int] = set()
        self._entries = 0

    def __call__(self, value: Any) -> Any:
        self._entries += 1
        if len(self._above) > _MAX_DEPTH or self._entries > _MAX_ENTRIES:
            raise ValueError("The checkpoint's hyper-parameters are nested too deeply, or too many, to be settings.")
        if id(value) in self._above:
            return None  # an object that holds itself
        if not isinstance(value, Record | Mapping | list | tuple | set | frozenset):
            return value
        self._above.add(id(value))
        try:
            return self._container(value)
        finally:
            self._above.discard(id(value))

    def _container(self, value: Any) -> Any:
        if isinstance(value, Record):
            state = value.state[0] if isinstance(value.state, tuple) and len(value.state) == 2 else value.state
            entries = [*state.items()] if isinstance(state, Mapping) else []
            entries += [item for item in value.items if isinstance(item, tuple) and len(item) == 2]
            return self._mapping(dict(entries)) if entries else [self(entry) for entry in value.arguments]
        return self._mapping(value) if isinstance(value, Mapping) else [self(entry) for entry in value]

    def _mapping(self, value: Mapping) -> dict[str, Any]:
        # Settings have names; keys of another kind are some container's of a logger.
        return {
            str(key) if isinstance(key, str | int | float) else type(key).__name__: self(entry)
            for key, entry in value.items()
        }
