"""Audio loading: arrays, files, bytes and values of `datasets` as 16 kHz mono float32 waveforms.

soundfile decodes files and bytes, soxr resamples; both are imported when first needed.
"""

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from numbers import Real
from typing import Any

import numpy as np
import torch

SAMPLING_RATE = 16_000  # Hz: what every supported speech encoder reads
MIN_SAMPLES = 400  # at 16 kHz (25 ms): fewer give no frame at all
MAX_ARRAY_CHANNELS = 2  # more in the smaller dimension means that the array is a batch
_RATE_RANGE = (1_000, 768_000)  # Hz
_UNKNOWN_FRAMES = 2**62  # libsndfile's count for streams whose header does not say how long they are
_LOST_FRAMES = 2_304  # two mp3 frames: what a lossy decoder may drop at an end
_MAX_AMPLITUDE = 1e9  # beyond it float32 variances overflow; nothing recorded comes near
_PCM = {"int8": 0, "int16": 0, "int32": 0, "uint8": 128, "uint16": 32_768}  # dtype -> the value of silence
_ACCEPTED = (
    "a numpy array, a list of floats, a torch tensor, a path, bytes, a binary file object, or a dictionary "
    'with "array" and "sampling_rate" or with "bytes" and "path"'
)


def split_audio_batch(audio: Any) -> list[Any]:
    """Return the utterances in `audio` as a list.

    An array, a tensor or a flat list of numbers is always *one* utterance, a two-dimensional array is one utterance
    with several channels: a batch is a list.

    Raises:
        ValueError: If `audio` is an empty list.
    """
    if not isinstance(audio, (list, tuple)):
        return [audio]
    if len(audio) == 0:
        raise ValueError("`audio` is an empty list: pass at least one utterance.")
    if isinstance(audio[0], Real) and not isinstance(audio[0], bool):
        return [audio]
    return list(audio)


def load_audio(item: Any, sampling_rate: int | None = None, name: str = "audio") -> np.ndarray:
    """Load one utterance as 16 kHz mono.

    Channels are averaged, of a file however many there are. In a two-dimensional array the smaller dimension is the
    channels, one or two, so (samples, channels) and (channels, samples) both work. Integer arrays are scaled as PCM of
    their width to [-1, 1). Resampling is soxr's "HQ" (linear phase, 20 bit). Audio is never clipped, trimmed or
    normalised here.

    Args:
        item: A numpy array, list of floats or torch tensor; a path (`str` or `Path`), the bytes of an audio file or a
            binary file object (wav, flac, ogg, mp3 and what else libsndfile reads); or the dictionaries of `datasets`.
        sampling_rate: Hz, required for arrays, lists and tensors. Files, and dictionaries that name one, have their
            own.
        name: What errors call the item, for instance "audio[3]".

    Returns:
        The waveform, float32, shape (samples,), at 16 kHz, at least 400 samples.

    Raises:
        TypeError: If `item` is of none of these types.
        FileNotFoundError: If a path does not exist.
        ValueError: If the audio is empty, shorter than 400 samples at 16 kHz, unreadable, has NaN or infinite samples,
            a shape that is no waveform, or an unknown or impossible sampling rate.
    """
    if isinstance(item, Mapping) and item.get("array") is not None:
        own_rate = item.get("sampling_rate")
        return load_audio(item["array"], sampling_rate if own_rate is None else own_rate, name)
    if isinstance(item, (np.ndarray, torch.Tensor, list, tuple)):
        samples, rate = _as_float(item, name), _check_rate(sampling_rate, name)
        return _resample(_check_samples(_to_mono(samples, name), name), rate, name)
    with _opened(*_file_of(item, name)) as (file, name):
        samples = file.read(dtype="float32", always_2d=True)  # (samples, channels)
        _check_whole(len(samples), file.frames, name)
        rate = _check_rate(file.samplerate, name)
    return _resample(_check_samples(samples.mean(axis=1), name), rate, name)


def load_audio_blocks(
    item: Any, sampling_rate: int | None = None, name: str = "audio", seconds: float = 10.0
) -> Iterator[np.ndarray]:
    """Load one utterance as 16 kHz mono piece by piece, so that a file of any length needs little memory.

    Args:
        item: See `load_audio`. What is no file is in memory already, and comes in one piece.
        sampling_rate: See `load_audio`.
        name: See `load_audio`.
        seconds: Length of a piece, about.

    Yields:
        Pieces of what `load_audio` returns, which are the same samples bit for bit.

    Raises:
        As `load_audio` does, but where the fault is: when its piece is asked for.
    """
    if isinstance(item, (np.ndarray, torch.Tensor, list, tuple)) or (
        isinstance(item, Mapping) and item.get("array") is not None
    ):
        yield load_audio(item, sampling_rate, name)
        return
    with _opened(*_file_of(item, name)) as (file, name):
        rate = _check_rate(file.samplerate, name)
        resampler = None
        if rate != SAMPLING_RATE:
            soxr = _imported("soxr", f"{name}: resampling from {rate} Hz")
            resampler = soxr.ResampleStream(rate, SAMPLING_RATE, 1, dtype="float32", quality="HQ")
        size, read, loaded, last = max(1, round(seconds * rate)), 0, 0, False
        while not last:
            samples = file.read(size, dtype="float32", always_2d=True)  # (samples, channels)
            last = len(samples) < size
            mono = _check_samples(samples.mean(axis=1), name, first=read)
            read += len(samples)
            if last:
                _check_whole(read, file.frames, name)
            block = mono if resampler is None else resampler.resample_chunk(mono, last=last)
            loaded += len(block)
            if len(block):
                yield block
        _check_length(loaded, read, rate, name)


def _file_of(item: Any, name: str) -> tuple[Any, str]:
    """The path, bytes or file object that holds the audio, and what errors call it."""
    if isinstance(item, Mapping):
        if item.get("bytes") is None and item.get("path") is None:
            raise ValueError(
                f'{name}: expected a dictionary with "array" and "sampling_rate" or with "bytes" or "path", '
                f"got the keys {sorted(map(str, item))}."
            )
        if item.get("bytes") is None:
            return item["path"], name
        return item["bytes"], f"{name} ({item['path']})" if item.get("path") else name
    if isinstance(item, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(item, "read"):
        return item, name
    raise TypeError(f"{name}: expected {_ACCEPTED}, got {type(item).__name__}.")


def _imported(package: str, purpose: str) -> Any:
    # Asked for only here, so that a model published with this file loads without the package.
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(f"{purpose} needs {package}: `pip install {package}`.") from error


def checked_path(path: str | os.PathLike, name: str, kind: str) -> tuple[str, str]:
    """Check that a path leads to a file, with the user's home expanded.

    Args:
        path: What was given.
        name: What errors call the item, for instance "audio[3]".
        kind: What the file should hold, for instance "an audio file".

    Returns:
        The path, and the item's name with the path in it.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If it is a URL or a directory.
    """
    text = os.fspath(path)
    name = f"{name} ({text})"
    if isinstance(text, str) and "://" in text:
        raise ValueError(f"{name}: URLs are not fetched; download the file and pass its path or bytes.")
    text = os.path.expanduser(text)
    if not os.path.exists(text):
        raise FileNotFoundError(f"{name}: no such file.")
    if os.path.isdir(text):
        raise ValueError(f"{name}: this is a directory, expected {kind}.")
    return text, name


@contextmanager
def _opened(source: Any, name: str) -> Iterator[tuple[Any, str]]:
    """Open a path, bytes or a binary file object by libsndfile; gives the open file and what errors call it."""
    soundfile = _imported("soundfile", f"{name}: reading audio files")
    if isinstance(source, (str, os.PathLike)):
        source, name = checked_path(source, name, "an audio file")
    elif isinstance(source, io.TextIOBase):
        raise TypeError(f"{name}: the file object is open in text mode; open it in binary mode.")
    elif hasattr(source, "read") and not hasattr(source, "seek"):  # a pipe or a response: libsndfile has to jump about
        source = source.read()
        if not isinstance(source, bytes):
            raise TypeError(f"{name}: the file object returns {type(source).__name__}; open it in binary mode.")
    if isinstance(source, (bytes, bytearray, memoryview)):
        if len(source) == 0:
            raise ValueError(f"{name}: empty audio (0 bytes).")
        source = io.BytesIO(source)
    try:
        with soundfile.SoundFile(source) as file:
            if file.frames >= _UNKNOWN_FRAMES:
                raise ValueError(
                    f"{name}: its header does not say how long it is (written to a pipe?); encode it again."
                )
            yield file, name
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: headerless raw audio
        raise ValueError(
            f"{name}: cannot be read as audio ({error}). Expected wav, flac, ogg, mp3 or another format of libsndfile."
        ) from error


def _check_whole(read: int, expected: int, name: str) -> None:
    if read < expected - _LOST_FRAMES:
        raise ValueError(f"{name}: the file is truncated, {read} of its {expected} samples can be read.")
    if read == 0:
        raise ValueError(f"{name}: empty audio (0 samples).")


def _as_float(item: np.ndarray | torch.Tensor | Sequence[Any], name: str) -> np.ndarray:
    if isinstance(item, torch.Tensor):
        item = item.detach().cpu()
        array = (item.float() if item.dtype == torch.bfloat16 else item).numpy()
    else:
        try:
            array = np.asarray(item)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name}: expected a flat list of floats, got lists of different lengths.") from error
    if array.size == 0:
        raise ValueError(f"{name}: empty audio (shape {tuple(array.shape)}).")
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # an overflow becomes infinite and is reported as such
            return array.astype(np.float32)
    if array.dtype.name in _PCM:
        silence = _PCM[array.dtype.name]
        full_scale = float(1 << (8 * array.dtype.itemsize - 1))
        return ((array.astype(np.float64) - silence) / full_scale).astype(np.float32)
    if array.dtype.kind in "iu":
        if np.abs(array).max() <= 1:  # a list such as [0, 0, 1]: already in range
            return array.astype(np.float32)
        raise ValueError(
            f"{name}: {array.dtype.name} is no PCM format, so its full scale is unknown; convert to int16 or int32, "
            "or to floats in [-1, 1]."
        )
    raise TypeError(f"{name}: expected numbers, got an array of {array.dtype}; audio is {_ACCEPTED}.")


def _check_rate(sampling_rate: Any, name: str) -> int:
    if sampling_rate is None:
        raise ValueError(
            f"{name}: the sampling rate of an array is unknown; pass `sampling_rate=` (Hz), "
            'or a dictionary {"array": ..., "sampling_rate": ...}.'
        )
    low, high = _RATE_RANGE
    number = isinstance(sampling_rate, Real) and not isinstance(sampling_rate, bool)
    if not number or not low <= sampling_rate <= high or sampling_rate != int(sampling_rate):
        raise ValueError(
            f"{name}: expected a sampling rate in whole Hz between {low} and {high}, got {sampling_rate!r}."
        )
    return int(sampling_rate)


def _to_mono(samples: np.ndarray, name: str) -> np.ndarray:
    if samples.ndim == 1:
        return samples
    if samples.ndim != 2 or min(samples.shape) > MAX_ARRAY_CHANNELS:
        raise ValueError(
            f"{name}: expected one utterance of shape (samples,), (samples, channels) or (channels, samples), mono or "
            f"stereo, got {tuple(samples.shape)}; pass a batch as a list of utterances, average more channels before."
        )
    return samples.mean(axis=int(np.argmin(samples.shape)))


def _check_samples(samples: np.ndarray, name: str, first: int = 0) -> np.ndarray:
    finite = np.isfinite(samples)
    if not finite.all():
        wrong = first + np.flatnonzero(~finite)
        raise ValueError(f"{name}: {len(wrong)} samples are NaN or infinite, the first at index {wrong[0]}.")
    peak = float(np.abs(samples).max(initial=0))
    if peak > _MAX_AMPLITUDE:
        raise ValueError(f"{name}: samples reach {peak:.3g}; expected a waveform in about [-1, 1].")
    return samples


def _resample(samples: np.ndarray, rate: int, name: str) -> np.ndarray:
    given = len(samples)
    if rate != SAMPLING_RATE:
        soxr = _imported("soxr", f"{name}: resampling from {rate} Hz")
        samples = soxr.resample(samples, rate, SAMPLING_RATE, quality="HQ")
    _check_length(len(samples), given, rate, name)
    return np.ascontiguousarray(samples, dtype=np.float32)


def _check_length(samples: int, given: int, rate: int, name: str) -> None:
    if samples < MIN_SAMPLES:
        origin = "" if rate == SAMPLING_RATE else f" (from {given} at {rate} Hz)"
        raise ValueError(
            f"{name}: too short, {samples} samples at {SAMPLING_RATE} Hz{origin}; "
            f"at least {MIN_SAMPLES} ({1000 * MIN_SAMPLES // SAMPLING_RATE} ms) are needed."
        )
