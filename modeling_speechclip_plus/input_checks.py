"""Errors for input that does not fit, raised before anything is computed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .speech_encoder import SAMPLING_RATE


def check_waveforms(input_values: Tensor, attention_mask: Tensor | None, minimum: int) -> None:
    """Check waveforms `(B, S)` and their mask, without waiting for the device.

    Raises:
        TypeError: If they are no tensor.
        ValueError: If their shape or dtype is wrong, or they are shorter than `minimum` samples.
    """
    if not isinstance(input_values, Tensor):
        raise TypeError(
            f"input_values must be a tensor of waveforms (B, S), but is a {type(input_values).__name__}. "
            "SpeechClipPlusProcessor makes one from arrays, lists and files."
        )
    shape = tuple(input_values.shape)
    if input_values.ndim != 2 or not input_values.is_floating_point():
        raise ValueError(
            f"input_values must be floating-point waveforms of shape (B, S), but are {input_values.dtype} of {shape}."
        )
    if shape[0] == 0:
        raise ValueError("input_values holds no utterance: the batch is empty.")
    if shape[1] < minimum:
        raise ValueError(
            f"input_values has {shape[1]} samples ({shape[1] / SAMPLING_RATE * 1000:.0f} ms at 16 kHz); "
            f"the speech encoder needs at least {minimum} for one frame."
        )
    if attention_mask is not None and tuple(attention_mask.shape) != shape:
        raise ValueError(
            f"attention_mask must have the shape of input_values, {shape}, but has {tuple(attention_mask.shape)}."
        )


def check_pairs(num_utterances: int, image_embeds: Tensor | None, image_ids: Tensor | None, return_loss: Any) -> None:
    """Check that images and ids fit `num_utterances`, and that there is what a loss needs.

    Raises:
        ValueError: If they do not.
    """
    if image_ids is not None and image_ids.shape != (num_utterances,):
        raise ValueError(
            f"image_ids must name one image for each of the {num_utterances} utterances, shape ({num_utterances},), "
            f"but has {tuple(image_ids.shape)}."
        )
    if not return_loss:
        return
    if image_embeds is None:
        raise ValueError("return_loss needs images: give pixel_values or image_embeds.")
    if len(image_embeds) != num_utterances:
        raise ValueError(
            f"return_loss needs one image for each utterance, but there are {num_utterances} utterances and "
            f"{len(image_embeds)} images. Repeat an image that several utterances describe."
        )
