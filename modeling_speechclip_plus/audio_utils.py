"""Audio loading: arrays, files, bytes and values of `datasets` as 16 kHz mono float32 waveforms.

soundfile decodes files and bytes, soxr resamples.
"""

import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from typing import Any, BinaryIO

import numpy as np
import torch

SAMPLING_RATE = 16_000  # Hz: what every supported speech encoder reads
MIN_SAMPLES = 400  # at 16 kHz (25 ms): fewer give no frame at all
MAX_ARRAY_CHANNELS = 2  # more in the smaller dimension means that the array is a batch
_RATE_RANGE = (1_000, 768_000)  # Hz
_UNKNOWN_FRAMES = 2**62  # libsndfile's count for streams whose header does not say how long they are
_OGG_PAGE_BYTES = 65_307  # the longest page
_LOST_FRAMES = 2_304  # two mp3 frames: what a lossy decoder may drop at an end
_MAX_AMPLITUDE = 1e9  # beyond it float32 variances overflow; nothing recorded comes near
_PCM = {"int8": 0, "int16": 0, "int32": 0, "uint8": 128, "uint16": 32_768}  # dtype -> the value of silence
_ACCEPTED = (
    "a numpy array, a list of floats, a torch tensor, a path, bytes, a binary file object, an AudioDecoder, or a "
    'dictionary with "array" and "sampling_rate" or with "bytes" or "path"'
)
# libsndfile's log of a header that promises more bytes of audio than there are (wav, aiff, au, svx; w64 and rf64).
_PROMISED_BYTES = re.compile(
    r"^ *(?:data|SSND|Data Size|BODY|riff|Riff size) *: (\d+) \(should be (\d+)\)$", re.MULTILINE
)
_STREAMED_BYTES = 0x7FFF_0000  # sizes from here on stand for "unknown" in files that were written to a pipe


def split_audio_batch(audio: Any) -> list[Any]:
    """Return the utterances in `audio` as a list: an array, a tensor or a flat list of numbers is always one."""
    if not isinstance(audio, (list, tuple)):
        return [audio]
    if len(audio) == 0:
        raise ValueError("`audio` is an empty list: pass at least one utterance.")
    return [audio] if isinstance(audio[0], Real) else list(audio)


def load_audio(item: Any, sampling_rate: int | None = None, name: str = "audio") -> np.ndarray:
    """Load one utterance as 16 kHz mono.

    Channels are averaged, of a file however many there are. In a two-dimensional array the smaller dimension is the
    channels, one or two, so (samples, channels) and (channels, samples) both work. Integer arrays are scaled as PCM of
    their width to [-1, 1). Resampling is soxr's "HQ" (linear phase, 20 bit). Audio is never clipped, trimmed or
    normalised here.

    Args:
        item: A numpy array, list of floats or torch tensor; a path (`str` or `Path`), the bytes of an audio file or a
            binary file object (wav, flac, ogg, mp3 and what else libsndfile reads); or a value of a `datasets.Audio`
            column: an `AudioDecoder` or a dictionary.
        sampling_rate: Hz, required for arrays, lists and tensors. Files, and values that name one, have their own.
        name: What errors call the item, for instance "audio[3]".

    Returns:
        The waveform, float32, shape (samples,), at 16 kHz, at least 400 samples.

    Raises:
        TypeError, OSError, ValueError: If it cannot be read whole, is shorter than 400 samples at 16 kHz, has NaN or
            infinite samples, a shape that is no waveform, or an impossible sampling rate; the message says which.
    """
    return np.concatenate(list(load_audio_blocks(item, sampling_rate, name)))


def load_audio_blocks(
    item: Any, sampling_rate: int | None = None, name: str = "audio", seconds: float = 10.0
) -> Iterator[np.ndarray]:
    """Yield pieces of what `load_audio` returns, about `seconds` long, so that any file needs little memory.

    What is no file comes in one piece. Errors come when the piece where the fault is, is asked for.
    """
    if hasattr(item, "get_all_samples"):  # torchcodec's AudioDecoder, which `datasets` returns
        decoded = item.get_all_samples()
        item = {"array": decoded.data.mean(dim=0), "sampling_rate": decoded.sample_rate}  # (channels, samples)
    if isinstance(item, Mapping) and item.get("array") is not None:
        sampling_rate = sampling_rate if item.get("sampling_rate") is None else item["sampling_rate"]
        item = item["array"]
    if isinstance(item, (np.ndarray, torch.Tensor, list, tuple)):
        rate = _check_rate(sampling_rate, name)
        yield from _resampled([_to_mono(_as_float(item, name), name)], rate, name)
        return
    with opened(item, name, _ACCEPTED) as (source, name), _decoded(source, name) as file:
        rate = _check_rate(file.samplerate, name)
        yield from _resampled(_read(file, source, max(1, round(seconds * rate)), name), rate, name)


@contextmanager
def opened(item: Any, name: str, accepted: str) -> Iterator[tuple[BinaryIO, str]]:
    """Open what holds an audio or image file: a path, bytes, a binary file object or a dictionary of `datasets`.

    Gives a binary file, and the item's name with its path, if it has one. An error tells what is `accepted`.
    """
    if isinstance(item, Mapping):
        path, content = item.get("path"), item.get("bytes")
        if content is None and path is None:
            raise ValueError(f"{name}: expected {accepted}, got the keys {sorted(map(str, item))}.")
        name = f"{name} ({path})" if path and content is not None else name
        item = path if content is None else content
    if isinstance(item, (str, os.PathLike)):
        path = os.path.expanduser(item)
        name = f"{name} ({path})"
        if "://" in str(path):
            raise ValueError(f"{name}: URLs are not fetched; download the file and pass its path or bytes.")
        try:
            file: Any = open(path, "rb")
        except OSError as error:
            raise type(error)(error.errno, f"{name}: {error.strerror}") from error
        with file:
            yield file, name
        return
    if isinstance(item, (bytes, bytearray, memoryview)):
        if len(item) == 0:
            raise ValueError(f"{name}: empty file (0 bytes).")
        item = io.BytesIO(item)
    if isinstance(item, io.TextIOBase):
        raise TypeError(f"{name}: the file object is open in text mode; open it in binary mode.")
    if not hasattr(item, "read"):
        raise TypeError(f"{name}: expected {accepted}, got {type(item).__name__}.")
    yield item if hasattr(item, "seek") else io.BytesIO(item.read()), name  # decoders seek; a pipe cannot


@contextmanager
def _decoded(source: BinaryIO, name: str) -> Iterator[Any]:
    """Decode a file by libsndfile, whose errors are given the item's name; gives a `soundfile.SoundFile`."""
    import soundfile

    try:
        with soundfile.SoundFile(source) as file:
            yield file
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: headerless raw audio
        raise ValueError(
            f"{name}: cannot be read as audio ({error}). Expected wav, flac, ogg, mp3 or another format of libsndfile."
        ) from error


def _read(file: Any, source: BinaryIO, size: int, name: str) -> Iterator[np.ndarray]:
    """Read a `SoundFile` as mono in pieces of `size` samples, and check that they are the whole file."""
    if file.frames >= _UNKNOWN_FRAMES:
        raise ValueError(f"{name}: its header does not say how long it is (written to a pipe?); encode it again.")
    read = 0
    while True:
        samples = file.read(size, dtype="float32", always_2d=True)  # (samples, channels)
        read += len(samples)
        yield samples.mean(axis=1)
        if len(samples) < size:
            break
    promised = [(int(given), int(found)) for given, found in _PROMISED_BYTES.findall(file.extra_info)]
    if any(found + 64 < given < _STREAMED_BYTES for given, found in promised) or "a truncated file" in file.extra_info:
        raise ValueError(f"{name}: the file is truncated, its header tells of more than {read} samples.")
    if _cut_off(file, source):
        raise ValueError(f"{name}: the file is truncated, only {read} samples can be read.")
    if read < file.frames - _LOST_FRAMES:
        raise ValueError(f"{name}: the file is truncated, {read} of its {file.frames} samples can be read.")
    # libsndfile guesses the length of an MP3 without a tag frame, and knows one of several streams in a file.
    if file.format == "MP3" and (rest := source.read(2))[:1] == b"\xff" and rest[1:] >= b"\xe0":
        raise ValueError(f"{name}: there is more audio behind the {read} samples that it tells of; encode it again.")
    if read == 0:
        raise ValueError(f"{name}: empty audio (0 samples).")


def _cut_off(file: Any, source: BinaryIO) -> bool:
    """Whether a file ends before its header says, in formats that libsndfile reads to the end without a word."""
    if file.format == "OGG":
        source.seek(max(0, source.seek(0, io.SEEK_END) - _OGG_PAGE_BYTES))
        tail = source.read()
        page = tail[tail.rfind(b"OggS") :]
        return len(page) < 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]])
    if file.format == "NIST":
        source.seek(0)
        count = re.search(rb"^sample_count -i (\d+)", source.read(1024), re.MULTILINE)
        return count is not None and int(count[1]) > file.frames
    return False


def _resampled(blocks: Iterable[np.ndarray], rate: int, name: str) -> Iterator[np.ndarray]:
    """Check mono blocks of a waveform and bring them to 16 kHz; what is resampled is the same however it is cut."""
    given = made = 0
    resampler: Any = None
    if rate != SAMPLING_RATE:
        import soxr

        resampler = soxr.ResampleStream(rate, SAMPLING_RATE, 1, dtype="float32", quality="HQ")
    for block in blocks:
        _check_samples(block, given, name)
        given += len(block)
        block = block if resampler is None else resampler.resample_chunk(block)
        made += len(block)
        yield block
    if resampler is not None:
        block = resampler.resample_chunk(np.empty(0, np.float32), last=True)
        made += len(block)
        yield block
    if made < MIN_SAMPLES:
        origin = "" if rate == SAMPLING_RATE else f" (from {given} at {rate} Hz)"
        raise ValueError(
            f"{name}: too short, {made} samples at {SAMPLING_RATE} Hz{origin}; "
            f"at least {MIN_SAMPLES} ({1000 * MIN_SAMPLES // SAMPLING_RATE} ms) are needed."
        )


def _as_float(item: Any, name: str) -> np.ndarray:
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


def _check_samples(samples: np.ndarray, first: int, name: str) -> None:
    wrong = np.flatnonzero(~(np.abs(samples) <= _MAX_AMPLITUDE))
    if len(wrong):
        raise ValueError(
            f"{name}: {len(wrong)} samples are NaN, infinite or far beyond [-1, 1], the first at index "
            f"{first + wrong[0]} ({samples[wrong[0]]:.3g})."
        )
