"""Processor of audio, images and text for SpeechCLIP and SpeechCLIP+ models."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer, Wav2Vec2FeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack
from transformers.utils import cached_file

from ..configuration.publication import push_saved, pushing_options, write_code
from ..remote_code import IS_REMOTE
from .audio_utils import MIN_SAMPLES, SAMPLING_RATE, load_audio, split_audio_batch
from .image_utils import load_image, split_image_batch

CLIP_MAX_TOKENS = 77  # start and end included
_PADDING_ARGUMENTS = ("padding", "pad_to_multiple_of", "padding_side", "return_tensors")


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Name `what` in errors of the libraries below, which offline do not say what they could not find."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise (OSError if isinstance(error, OSError) else ValueError)(f"{what}: {error}") from error


def _load_feature_extractor(speech: str, do_normalize: bool | None, **kwargs: Any) -> Any:
    try:
        feature_extractor = AutoFeatureExtractor.from_pretrained(speech, **kwargs)
    except OSError:
        if do_normalize is None:  # the one thing about a waveform that cannot be guessed
            raise
        cached_file(speech, "config.json", **kwargs)  # raises if there is no such model at all
        return Wav2Vec2FeatureExtractor(do_normalize=do_normalize)
    if do_normalize is not None and "input_values" in feature_extractor.model_input_names:
        feature_extractor.do_normalize = do_normalize
    return feature_extractor


class SpeechClipPlusProcessor(ProcessorMixin):
    """Wrap a speech feature extractor, a CLIP image processor and a CLIP tokenizer into one object.

    Whether waveforms are normalised to zero mean and unit variance, each over its own length, is the feature
    extractor's `do_normalize`; it is saved with the processor and always obeyed.

    Args:
        feature_extractor: That of the speech encoder, for 16 kHz and padding on the right: `Wav2Vec2FeatureExtractor`
            for waveforms (HuBERT, WavLM, wav2vec 2.0), `SeamlessM4TFeatureExtractor` (w2v-BERT 2.0) or
            `WhisperFeatureExtractor` for log-mel features.
        image_processor: CLIP's image processor.
        tokenizer: CLIP's tokenizer.
    """

    # What a call uses unless told otherwise. The text mask is left out: CLIP's text tower is causal and read at the
    # end token, so it does not need one, and the name would collide with the audio's.
    text_kwargs = {"padding": True, "truncation": True, "return_attention_mask": False, "return_tensors": "pt"}
    images_kwargs = {"return_tensors": "pt"}
    audio_kwargs = {"padding": True, "return_attention_mask": True, "return_tensors": "pt"}

    def __init__(self, feature_extractor, image_processor, tokenizer):
        super().__init__(feature_extractor, image_processor, tokenizer)
        if feature_extractor.sampling_rate != SAMPLING_RATE or feature_extractor.padding_side != "right":
            raise ValueError(
                f"Expected a feature extractor for {SAMPLING_RATE} Hz that pads on the right, got "
                f"{feature_extractor.sampling_rate} Hz and {feature_extractor.padding_side!r}."
            )
        tokenizer("")  # ends truncation and padding that its file may have set; see `_prepare_text`

    @classmethod
    def from_backbones(
        cls,
        speech: str | os.PathLike,
        clip: str | os.PathLike,
        do_normalize: bool | None = None,
        speech_revision: str | None = None,
        clip_revision: str | None = None,
        **hub_kwargs: Any,
    ) -> "SpeechClipPlusProcessor":
        """Build a processor from the repositories (or local directories) of a speech encoder and a CLIP model.

        Args:
            speech: Where the speech encoder and its feature extractor are.
            clip: Where CLIP is; its image processor and tokenizer are used.
            do_normalize: Whether waveforms are normalised; None takes what `speech` says, True or False what a
                preset says. Log-mel features are normalised as their encoder was trained, whatever is given.
            speech_revision: Branch, tag or commit of `speech`.
            clip_revision: Branch, tag or commit of `clip`.
            **hub_kwargs: `cache_dir`, `token`, `local_files_only` and the like, for both.
        """
        speech, clip = os.fspath(speech), os.fspath(clip)
        speech_kwargs = {**hub_kwargs, "revision": speech_revision or "main"}
        clip_kwargs = {**hub_kwargs, "revision": clip_revision or "main"}
        with _naming(f"speech backbone {speech!r}"):
            feature_extractor = _load_feature_extractor(speech, do_normalize, **speech_kwargs)
        with _naming(f"CLIP backbone {clip!r}"):
            image_processor = AutoImageProcessor.from_pretrained(clip, **clip_kwargs)
            tokenizer = AutoTokenizer.from_pretrained(clip, **clip_kwargs)
        return cls(feature_extractor=feature_extractor, image_processor=image_processor, tokenizer=tokenizer)

    def save_pretrained(
        self, save_directory: str | os.PathLike, remote_code: bool = IS_REMOTE, **kwargs: Any
    ) -> list[str]:
        """Save the processor; see the model's `save_pretrained`. Returns the configuration files written."""
        pushing = pushing_options(kwargs, save_directory)
        files = super().save_pretrained(save_directory, **kwargs)
        write_code(save_directory, "processor_config.json", remote_code)
        if pushing is not None:
            self.push_to_hub(**pushing)
        return files

    def push_to_hub(self, repo_id: str, *, commit_message: str = "Upload processor", **kwargs: Any) -> Any:
        """Push the processor with its code, beside what the repository holds; arguments as of [`push_saved`]."""
        return push_saved(self.save_pretrained, repo_id, commit_message=commit_message, **kwargs)

    def __call__(
        self,
        audio: Any = None,
        images: Any = None,
        text: str | list[str] | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        """Prepare any of audio, images and text for the model.

        Args:
            audio: One utterance or a list of what `load_audio` takes; an array is always one. Resampled to 16 kHz
                mono.
            images: One image or a list of what `load_image` takes; a four-dimensional array or tensor is a batch.
            text: A string or a list of strings; cut to CLIP's 77 tokens with a warning that counts the cuts.
            **kwargs: `sampling_rate` (Hz), required if any utterance is an array, a list or a tensor (files and
                dictionaries carry their own); `return_tensors`, by default "pt"; and what transformers' processors
                take, plain or in `audio_kwargs`, `images_kwargs`, `text_kwargs`. A plain `padding`, `truncation` or
                `max_length` goes to text and audio alike.

        Returns:
            Of what was given: `input_values` (B, S) float32, zeros after an utterance's end; `attention_mask` (B, S)
            int64, 1 = sample; `pixel_values` (B, 3, H, W) float32; `input_ids` (B, tokens) int64. For encoders of
            log-mel features `input_values` is (B, T, F) or (B, F, T), and `attention_mask` (B, T).

        Raises:
            TypeError, ValueError, OSError: If an item cannot be used; the message names its index and path.
        """
        if images is None and text is None and audio is None:
            raise ValueError("Nothing to process: pass at least one of `audio`, `images` and `text`.")
        self._check_arguments(kwargs)
        merged = self._merge_kwargs(self.valid_processor_kwargs, **kwargs)
        data: dict[str, Any] = {}
        if audio is not None:
            data |= self._prepare_audio(audio, **merged["audio_kwargs"])
        if images is not None:
            items = enumerate(split_image_batch(images))
            loaded = [load_image(item, name=f"images[{index}]") for index, item in items]
            data |= self.image_processor(loaded, **merged["images_kwargs"])
        if text is not None:
            data |= self._prepare_text(text, **merged["text_kwargs"])
        return BatchFeature(data)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors a call can return."""
        return ["input_values", "attention_mask", "pixel_values", "input_ids"]

    def _check_arguments(self, kwargs: dict[str, Any]) -> None:
        kinds = self.valid_processor_kwargs.__annotations__
        parts = (getattr(part, "valid_kwargs", None) for part in (self.image_processor, self.tokenizer))
        known = {"common_kwargs", *kinds}.union(
            *(getattr(kind, "__annotations__", {}) for kind in (*kinds.values(), *parts))
        )
        if unknown := sorted(set(kwargs) - known):
            raise TypeError(
                f"Unexpected argument {unknown[0]!r}: expected `audio`, `images`, `text`, `sampling_rate`, "
                "`return_tensors`, or an option of transformers' processors."
            )

    def _prepare_audio(
        self, audio: Any, sampling_rate: Any = None, return_tensors: Any = None, **kwargs: Any
    ) -> BatchFeature:
        max_length = kwargs.get("max_length")
        if kwargs.get("truncation") and max_length is not None and max_length < MIN_SAMPLES:
            raise ValueError(
                f"`truncation` with max_length={max_length} would cut every utterance to {max_length} samples, at "
                f"least {MIN_SAMPLES} are needed; to limit the text alone pass them in `text_kwargs`."
            )
        items = enumerate(split_audio_batch(audio))
        waveforms = [load_audio(item, sampling_rate, name=f"audio[{index}]") for index, item in items]
        if samples := getattr(self.feature_extractor, "n_samples", None):  # Whisper's reads 30 s, no more and no less
            kwargs["padding"] = "max_length"
            for index, waveform in enumerate(waveforms):
                if len(waveform) > samples:
                    raise ValueError(
                        f"audio[{index}]: {len(waveform) / SAMPLING_RATE:.1f} s are more than the "
                        f"{samples / SAMPLING_RATE:.0f} s that the speech encoder reads; cut it into pieces."
                    )
        features = self.feature_extractor(waveforms, sampling_rate=SAMPLING_RATE, **kwargs)
        values = features[self.feature_extractor.model_input_names[0]]
        data: dict[str, Any] = {"input_values": [np.asarray(value, dtype=np.float32) for value in values]}
        if "attention_mask" in features:
            data["attention_mask"] = [np.asarray(mask, dtype=np.int64) for mask in features["attention_mask"]]
            for index, mask in enumerate(data["attention_mask"]):
                if not mask.any():
                    raise ValueError(f"audio[{index}]: {len(waveforms[index])} samples at 16 kHz give no frame.")
        return BatchFeature(data, tensor_type=return_tensors)

    def _prepare_text(
        self, text: Any, truncation: Any = True, max_length: int | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, (list, tuple)):
            raise TypeError(f"text: expected a string or a list of strings, got {type(text).__name__}.")
        if len(texts) == 0:
            raise ValueError("`text` is an empty list: pass at least one string.")
        for index, item in enumerate(texts):
            if not isinstance(item, str):
                raise TypeError(f"text[{index}]: expected a string, got {type(item).__name__}.")
        max_length = max_length or min(self.tokenizer.model_max_length, CLIP_MAX_TOKENS)
        # Truncated and padded here: in a fast tokenizer both are state, which threads would change for each other.
        padding = {key: kwargs.pop(key) for key in _PADDING_ARGUMENTS if key in kwargs}
        kwargs |= {"return_attention_mask": False, "verbose": False}
        ids = self.tokenizer(list(texts), **kwargs)["input_ids"]
        lengths = [len(row) for row in ids]
        cut = sum(length > max_length for length in lengths)
        if cut and truncation not in (False, "do_not_truncate"):
            warnings.warn(
                f"{cut} of {len(texts)} texts {'is' if cut == 1 else 'are'} longer than {max_length} tokens (start "
                f"and end included, the longest has {max(lengths)}) and {'was' if cut == 1 else 'were'} cut.",
                stacklevel=3,
            )
            ids = [row if len(row) <= max_length else [*row[: max_length - 1], row[-1]] for row in ids]
        if padding.get("padding") == "max_length":
            padding["max_length"] = max_length
        padded = self.tokenizer.pad({"input_ids": ids}, return_attention_mask=False, **padding)
        return {"input_ids": padded["input_ids"]}


__all__ = ["SpeechClipPlusProcessor"]
