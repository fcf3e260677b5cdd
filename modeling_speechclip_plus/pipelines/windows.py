"""Windows: long recordings read as stretches that overlap."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedConfig

from ..audio_utils import SAMPLING_RATE, load_audio_blocks
from ..speech_encoder import speech_encoder_adapter

# About the longest that HuBERT, WavLM and wav2vec 2.0 (base) saw when they were trained, 250,000 samples; spoken
# captions are shorter still, and 15 s of CIF's keywords (one in 0.4 s) fill half of the 75 places that CLIP has.
CHUNK_LENGTH_S = 15.0
# A rest of less than this stays with the window before it: so little speech says nothing by itself.
REST_SAMPLES = SAMPLING_RATE


@dataclass(frozen=True)
class Window:
    """A stretch of a recording.

    Attributes:
        samples: (S,) float32 at 16 kHz.
        span: From where to where it goes, in samples of the recording; what completes the last frame comes on top.
        core: From where to where, in samples of the recording, what it holds is this window's own: the cores of all
            windows together are the recording, each sample once.
        is_last: Whether it ends with the recording.
    """

    samples: np.ndarray
    span: tuple[int, int]
    core: tuple[int, int]
    is_last: bool


@dataclass(frozen=True)
class Windowing:
    """How recordings are cut.

    Attributes:
        length: Of a window, in samples; 0 leaves recordings whole.
        left: Samples at the start of a window, the first one apart, that belong to the window before it.
        right: Samples at the end of a window, the last one apart, that belong to the window after it.
        step: Samples from the start of one window to that of the next.
    """

    length: int
    left: int
    right: int
    step: int

    @classmethod
    def from_seconds(
        cls,
        speech_config: PreTrainedConfig,
        chunk_length_s: float = CHUNK_LENGTH_S,
        stride_length_s: float | Sequence[float] | None = None,
    ) -> "Windowing":
        """Bring lengths to whole frames of the speech encoder.

        Args:
            speech_config: Of the encoder, whose frames windows begin and end with.
            chunk_length_s: Length of a window; 0 reads recordings whole, however long.
            stride_length_s: Overlap on the left and on the right of each window; a sixth of it on both sides if not
                given.

        Raises:
            ValueError: If they are no lengths, or the overlaps leave nothing of a window.
        """
        strides = chunk_length_s / 6 if stride_length_s is None else stride_length_s
        pair = tuple(strides) if isinstance(strides, (list, tuple)) else (strides, strides)
        if len(pair) != 2 or not all(0 <= seconds < float("inf") for seconds in (chunk_length_s, *pair)):
            raise ValueError(
                "Expected chunk_length_s in seconds (0 for recordings as a whole) and stride_length_s in seconds or "
                f"as (left, right), got {chunk_length_s!r} and {stride_length_s!r}."
            )
        encoder = speech_encoder_adapter(speech_config)
        hop = encoder.samples_per_frame
        frames, left, right = (round(seconds * SAMPLING_RATE / hop) for seconds in (chunk_length_s, *pair))
        if not chunk_length_s:
            return cls(0, 0, 0, 0)
        if frames <= left + right:
            raise ValueError(
                f"A window of chunk_length_s={chunk_length_s} must be longer than its overlaps, which "
                f"stride_length_s={stride_length_s} makes {pair[0]} + {pair[1]} s."
            )
        # A window of n frames, each of them whole.
        length = (frames - 1) * hop + encoder.minimum_samples
        return cls(length, left * hop, right * hop, (frames - left - right) * hop)


def read_windows(
    item: Any, windowing: Windowing, sampling_rate: int | None = None, name: str = "audio"
) -> Iterator[Window]:
    """Read a recording window by window; of a file no more than a window and ten seconds are in memory.

    Args:
        item: As `load_audio` takes it.
        windowing: How to cut.
        sampling_rate: Of arrays that do not come with their own.
        name: What errors call the item.

    Yields:
        Windows in their order; one alone for a recording that is no more than a second longer than a window.
    """
    start, kept = 0, np.empty(0, np.float32)
    blocks = load_audio_blocks(item, sampling_rate, name)
    if not windowing.length:
        samples = np.concatenate(list(blocks))
        yield Window(samples, (0, len(samples)), (0, len(samples)), True)
        return
    for block in blocks:
        kept = np.concatenate([kept, block])
        while len(kept) > windowing.length + REST_SAMPLES:
            core = (start + windowing.left if start else 0, start + windowing.left + windowing.step)
            end = start + windowing.left + windowing.step + windowing.right
            yield Window(kept[: windowing.length].copy(), (start, end), core, False)
            kept = kept[windowing.step :]
            start += windowing.step
    end = start + len(kept)
    yield Window(kept.copy(), (start, end), (start + windowing.left if start else 0, end), True)
