"""Base of the pipelines: their inputs, windows and batches, and saving."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.pipelines.base import ChunkPipeline

from ..audio_utils import SAMPLING_RATE, load_audio_blocks
from ..image_utils import load_image
from ..speech_encoder import speech_encoder_adapter

MODEL_TYPE = "speechclip_plus"
# About the longest that HuBERT, WavLM and wav2vec 2.0 (base) saw when they were trained, 250,000 samples; spoken
# captions are shorter still, and 15 s of CIF's keywords (one in 0.4 s) fill half of the 75 places that CLIP has.
CHUNK_LENGTH_S = 15.0
# A rest of less than this stays with the window before it: so little speech says nothing by itself.
REST_SAMPLES = SAMPLING_RATE
# Of `save_pretrained`, what concerns model and processor alike.
_SHARED_ARGUMENTS = ("remote_code", "push_to_hub", "repo_id", "token", "private", "revision", "commit_message")


@dataclass(frozen=True)
class PipelineInput:
    """One recording, image or text (`kind`: "audio", "images", "text"); errors call it by its name."""

    kind: str
    item: Any
    name: str


@dataclass(frozen=True)
class InputDataset(Dataset):
    """Inputs out of a list, a data set or a column of one, each read when its turn comes."""

    kind: str
    items: Any
    name: str

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> PipelineInput:
        return PipelineInput(self.kind, self.items[index], f"{self.name}[{index}]")


class SpeechClipPlusPipeline(ChunkPipeline):
    """Base of the pipelines of a `SpeechClipPlusModel`, which is set to evaluation mode, and its processor.

    Recordings are read in windows, and batches are made of windows, padded and masked, so that `batch_size` changes
    the time that an answer takes and not the answer. `**kwargs` are `device`, `batch_size`, `num_workers`, and
    defaults for the arguments of a call.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _load_video_processor = False

    # Arguments of a call, and the stages that they are for.
    _arguments: dict[str, tuple[str, ...]] = {"chunk_length_s": ("preprocess",), "stride_length_s": ("preprocess",)}

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin | None = None, **kwargs: Any) -> None:
        model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        if model_type != MODEL_TYPE:  # by name: a class that came as remote code is another one of the same name
            raise ValueError(f"{type(self).__name__} needs a SpeechClipPlusModel, but the model is a {model_type!r}.")
        if processor is None:
            raise ValueError(f"{type(self).__name__} needs the model's processor: pass processor=.")
        # transformers.pipeline hands the model's dtype to the processor, whose tokenizer would keep and save it.
        processor.tokenizer.init_kwargs.pop("dtype", None)
        model.eval()
        kwargs.pop("local_files_only", None)  # of loading; transformers.pipeline passes it on
        super().__init__(model=model, processor=processor, **kwargs)

    def _answer(self, kind: str, given: Any, **kwargs: Any) -> Any:
        inputs, as_list = pipeline_inputs(kind, given)
        answers = super().__call__(inputs, **kwargs)
        return list(answers) if as_list else answers

    def _sanitize_parameters(self, **given: Any) -> tuple[dict[str, Any], ...]:
        stages: dict[str, dict[str, Any]] = {"preprocess": {}, "forward": {}, "postprocess": {}}
        for name, value in given.items():
            if name not in self._arguments:
                raise TypeError(f"{type(self).__name__} got an unexpected keyword argument {name!r}.")
            for stage in () if value is None else self._arguments[name]:
                stages[stage][name] = value
        return tuple(stages.values())

    def preprocess(
        self,
        input_: PipelineInput,
        chunk_length_s: float = CHUNK_LENGTH_S,
        stride_length_s: float | Sequence[float] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Make the model's inputs: one of an image or a text, one of each window of a recording."""
        if input_.kind == "images":
            image = load_image(input_.item, input_.name)
            yield {"is_last": True, **self.processor(images=image, return_tensors="pt")}
        elif input_.kind == "text":
            if not isinstance(input_.item, str):
                raise TypeError(f"{input_.name}: expected a string, got {type(input_.item).__name__}.")
            yield {"is_last": True, **self.processor(text=[input_.item], return_tensors="pt")}
        else:
            windowing = self._windowing(chunk_length_s, stride_length_s)
            recording: Any = input_.item
            rate: int | None = SAMPLING_RATE
            if isinstance(recording, Mapping):  # "raw" is what transformers' audio pipelines call an array
                recording, rate = {"array": recording.get("raw"), **recording}, None
            for window in read_windows(recording, windowing, rate, input_.name):
                # The mask is what keeps the padding of a batch out of an utterance.
                features = self.processor(
                    audio=window.samples, sampling_rate=SAMPLING_RATE, return_tensors="pt", return_attention_mask=True
                )
                yield {"is_last": window.is_last, "span": window.span, "core": window.core, **features}

    def _windowing(
        self, chunk_length_s: float = CHUNK_LENGTH_S, stride_length_s: float | Sequence[float] | None = None
    ) -> "Windowing":
        return Windowing.from_seconds(self.model.config.speech_config, chunk_length_s, stride_length_s)

    def _embed(self, model_inputs: dict[str, Any], branch: str | None = None) -> Tensor:
        """Embed a batch of images, texts or windows: (B, P) float32, unit length."""
        if "pixel_values" in model_inputs:
            embeds = self.model.get_image_features(model_inputs["pixel_values"]).pooler_output
        elif "input_ids" in model_inputs:
            embeds = self.model.get_text_features(model_inputs["input_ids"]).pooler_output
        else:
            embeds = self.model.get_audio_features(**waveforms(model_inputs), branch=branch).pooler_output
        return torch.nn.functional.normalize(embeds.float(), dim=-1)  # half precision is not quite unit length

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save model and processor by the arguments of the model's `save_pretrained`."""
        self.model.save_pretrained(save_directory, **kwargs)
        shared = {name: kwargs[name] for name in _SHARED_ARGUMENTS if name in kwargs}
        self.processor.save_pretrained(save_directory, **shared)


def one_of(**given: Any) -> tuple[str, Any]:
    """Name and value of the one argument that was given; a TypeError if there is none, or more than one."""
    chosen = {name: value for name, value in given.items() if value is not None}
    if len(chosen) != 1:
        what = " and ".join(chosen) if chosen else "nothing"
        raise TypeError(f"Expected one of {', '.join(given)}, got {what}.")
    return chosen.popitem()


def waveforms(model_inputs: dict[str, Any]) -> dict[str, Tensor]:
    """The part of a batch of windows that the model reads."""
    return {name: model_inputs[name] for name in ("input_values", "attention_mask")}


def mean_embedding(model_outputs: list[dict[str, Any]]) -> Tensor:
    """One embedding of a recording's windows: (1, P), the mean of theirs scaled to unit length."""
    embeds = torch.cat([output["embeds"] for output in model_outputs])  # (W, P)
    return torch.nn.functional.normalize(embeds.mean(dim=0, keepdim=True), dim=-1)


def pipeline_inputs(kind: str, given: Any) -> tuple[Any, bool]:
    """Bring what a pipeline is called with to what `transformers.Pipeline.__call__` takes.

    Also says whether the answer shall be a list: of a list, a tuple or a column it is, of a data set or a generator it
    is an iterator that reads as it goes.
    """
    if isinstance(given, Dataset) and not isinstance(given, IterableDataset):
        return InputDataset(kind, given, kind), False
    if is_batch(kind, given):
        if len(given) == 0:
            raise ValueError(f"{kind}: an empty list; give at least one.")
        return InputDataset(kind, given, kind), True
    # A column of a streamed data set can be iterated over, and nothing else; so can a file object, which is one input.
    one = (Sequence, Mapping, np.ndarray, torch.Tensor, bytearray, memoryview)
    if isinstance(given, (Iterable, IterableDataset)) and not isinstance(given, one) and not hasattr(given, "read"):
        return (PipelineInput(kind, item, f"{kind}[{index}]") for index, item in enumerate(given)), False
    return PipelineInput(kind, given, kind), False


def is_batch(kind: str, given: Any) -> bool:
    """Whether `given` is several inputs: a list, a tuple, a column, a 4-dimensional array of images.

    A list of numbers is one waveform; a string, bytes and any other array or tensor are one input.
    """
    if isinstance(given, (np.ndarray, torch.Tensor)):
        return kind == "images" and given.ndim == 4
    if isinstance(given, (str, bytes, bytearray, memoryview, Mapping)) or not isinstance(given, Sequence):
        return False
    return not (kind == "audio" and len(given) and isinstance(given[0], Real))


@dataclass(frozen=True)
class Window:
    """A stretch of a recording: (S,) float32 samples at 16 kHz.

    Attributes:
        span: From where to where it goes, in samples of the recording; what completes the last frame comes on top.
        core: The part that is this window's own: all windows' cores together are the recording, each sample once.
        is_last: Whether it ends with the recording.
    """

    samples: np.ndarray
    span: tuple[int, int]
    core: tuple[int, int]
    is_last: bool


@dataclass(frozen=True)
class Windowing:
    """How recordings are cut, in samples.

    Attributes:
        length: Of a window; 0 leaves recordings whole.
        left, right: At a window's start and end, what belongs to the windows beside it.
        step: From the start of one window to that of the next.
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
        """Bring a window's length, and its overlaps on both sides or as (left, right), to whole frames."""
        strides = chunk_length_s / 6 if stride_length_s is None else stride_length_s
        pair = tuple(strides) if isinstance(strides, (list, tuple)) else (strides, strides)
        if len(pair) != 2 or not all(0 <= seconds < float("inf") for seconds in (chunk_length_s, *pair)):
            raise ValueError(
                "Expected chunk_length_s in seconds (0 for recordings as a whole) and stride_length_s in seconds or "
                f"as (left, right), got {chunk_length_s!r} and {stride_length_s!r}."
            )
        if not chunk_length_s:
            return cls(0, 0, 0, 0)
        encoder = speech_encoder_adapter(speech_config)
        hop = encoder.samples_per_frame
        frames, left, right = (round(seconds * SAMPLING_RATE / hop) for seconds in (chunk_length_s, *pair))
        if frames <= left + right:
            raise ValueError(
                f"A window of chunk_length_s={chunk_length_s} must be longer than its overlaps, which "
                f"stride_length_s={stride_length_s} makes {pair[0]} + {pair[1]} s."
            )
        length = (frames - 1) * hop + encoder.minimum_samples
        return cls(length, left * hop, right * hop, (frames - left - right) * hop)


def read_windows(
    item: Any, windowing: Windowing, sampling_rate: int | None = None, name: str = "audio"
) -> Iterator[Window]:
    """Read a recording, which `load_audio` takes, window by window; a file is never held whole."""
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
            yield Window(kept[: windowing.length].copy(), (start, core[1] + windowing.right), core, False)
            kept = kept[windowing.step :]
            start += windowing.step
    end = start + len(kept)
    yield Window(kept.copy(), (start, end), (start + windowing.left if start else 0, end), True)
