"""The speech encoder's side: frame counts, length-aware group norm, hidden states and their weighted sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

SAMPLING_RATE = 16_000


def samples_per_frame(speech_config: PreTrainedConfig) -> int:
    """Samples from one frame to the next; 320 in the published encoders, that is 50 frames per second."""
    stride = 1
    for layer_stride in speech_config.conv_stride:
        stride *= layer_stride
    return stride


def convolution_lengths(speech_config: PreTrainedConfig, lengths: Tensor | int, layers: int | None = None):
    """Length of the convolutional encoder's output for inputs of `lengths` samples, after the first `layers`."""
    for kernel, stride in list(zip(speech_config.conv_kernel, speech_config.conv_stride, strict=True))[:layers]:
        lengths = (lengths - kernel) // stride + 1
    return lengths


def minimum_samples(speech_config: PreTrainedConfig) -> int:
    """Fewest samples that give one frame."""
    samples = 1
    for kernel, stride in zip(reversed(speech_config.conv_kernel), reversed(speech_config.conv_stride), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples


class LengthAwareFeatureEncoder(nn.Module):
    """The convolutional encoder of a base-size model with a group norm that sees an utterance's own samples only.

    The group norm behind the first convolution averages over time. Zero padding enters its statistics and changes
    every valid frame (cosine 0.90 at double length); the attention mask of the layers above cannot mend that.

    Args:
        feature_encoder: The library's encoder, whose parameters and their names are kept.
    """

    def __init__(self, feature_encoder: nn.Module):
        super().__init__()
        self.conv_layers: Any = feature_encoder.conv_layers

    def _freeze_parameters(self) -> None:
        # transformers' freeze_feature_encoder() calls this on whatever stands here.
        self.requires_grad_(False)

    def forward(self, inputs: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """Encode waveforms `(B, S)`, or a pair of them with their lengths `(B,)` in samples, to `(B, C, T)`."""
        input_values, lengths = inputs if isinstance(inputs, tuple) else (inputs, None)
        first, *others = self.conv_layers
        hidden = first.conv(input_values[:, None])  # (B, C, T')
        if lengths is None:
            hidden = first.layer_norm(hidden)
        else:
            kernel, stride = first.conv.kernel_size[0], first.conv.stride[0]
            hidden = _masked_group_norm(hidden, first.layer_norm, (lengths - kernel) // stride + 1)
        hidden = first.activation(hidden)
        for layer in others:
            hidden = layer(hidden)
        return hidden


def _masked_group_norm(hidden: Tensor, norm: nn.GroupNorm, lengths: Tensor) -> Tensor:
    """Per-channel normalisation of `(B, C, T)` over each row's first `lengths` places; zero behind them."""
    mask = (torch.arange(hidden.shape[-1], device=hidden.device) < lengths[:, None])[:, None]  # (B, 1, T)
    count = lengths[:, None, None].to(torch.float32)
    values = hidden.float().masked_fill(~mask, 0)
    mean = values.sum(dim=-1, keepdim=True) / count
    variance = (values - mean).masked_fill(~mask, 0).square().sum(dim=-1, keepdim=True) / count
    scale = torch.rsqrt(variance + norm.eps) * norm.weight[:, None].float()
    shift = norm.bias[:, None].float() - mean * scale
    return torch.addcmul(shift, values, scale).masked_fill(~mask, 0).to(hidden.dtype)


def uses_group_norm(speech_config: PreTrainedConfig) -> bool:
    """Whether padding leaks into every frame through a group norm (base-size models)."""
    return getattr(speech_config, "feat_extract_norm", None) == "group"


def encode_speech(
    encoder: PreTrainedModel,
    input_values: Tensor,
    attention_mask: Tensor | None,
    *,
    padding: str,
    output_attentions: bool = False,
) -> tuple[tuple[Tensor, ...], Tensor, tuple[Tensor, ...] | None]:
    """Run a speech encoder.

    Args:
        encoder: HuBERT, WavLM or wav2vec 2.0.
        input_values: `(B, S)` waveforms at 16 kHz, zero-padded on the right.
        attention_mask: `(B, S)`, 1 for a sample; `None` if nothing is padded.
        padding: `"invariant"` or `"original"`, as in [`SpeechClipPlusConfig`].
        output_attentions: Whether to return the encoder's attention weights.

    Returns:
        The L + 1 hidden states `(B, T, D)` (what enters the first layer, then each layer's output, before any final
        norm), the frames of each utterance `(B,)` int64, and the attention weights or `None`.
    """
    config = encoder.config
    total = input_values.shape[1]
    num_frames = convolution_lengths(config, total)
    inputs: Tensor | tuple[Tensor, Tensor] = input_values
    if attention_mask is None:
        frame_lengths = torch.full((len(input_values),), num_frames, device=input_values.device)
        sample_mask = None
    else:
        sample_lengths = attention_mask.sum(dim=1)
        if padding == "invariant":
            frame_lengths = convolution_lengths(config, sample_lengths)
            if isinstance(encoder.feature_extractor, LengthAwareFeatureEncoder):
                inputs = (input_values, sample_lengths)
            sample_mask = attention_mask
        else:
            # The original counts frames by rounding, while its encoder's mask cuts the padded length into T equal
            # chunks and keeps each that holds a sample; its mask can so be a frame or two longer.
            frame_lengths = torch.round(sample_lengths / samples_per_frame(config)).long().clamp(1, num_frames)
            chunk = total // num_frames
            kept = (sample_lengths + chunk - 1) // chunk
            # The library counts in its own way: give it a sample mask from which it derives these frames.
            samples = (kept.clamp(max=num_frames) - 1) * samples_per_frame(config) + minimum_samples(config)
            sample_mask = (torch.arange(total, device=samples.device) < samples[:, None]).long()
        _check_lengths(config, frame_lengths)
    outputs = encoder(
        inputs, attention_mask=sample_mask, output_hidden_states=True, output_attentions=output_attentions
    )
    return outputs.hidden_states, frame_lengths, outputs.attentions if output_attentions else None


def _check_lengths(config: PreTrainedConfig, frame_lengths: Tensor) -> None:
    message = (
        f"an utterance is shorter than the {minimum_samples(config)} samples that give one frame; "
        "leave it out or pad it before it reaches the model"
    )
    if frame_lengths.device.type == "cpu":
        if bool((frame_lengths < 1).any()):
            rows = (frame_lengths < 1).nonzero().flatten().tolist()
            raise ValueError(f"attention_mask: {message} (rows {rows}).")
    else:
        torch._assert_async((frame_lengths > 0).all(), message)  # no wait for the device


class LayerWeightedSum(nn.Module):
    """Softmax-weighted sum of the speech encoder's hidden states with learned scalars (arXiv 2210.00705, section 3.1).

    Args:
        num_states: L + 1.
        normalize: Apply a parameter-free layer norm to each state first.
    """

    def __init__(self, num_states: int, normalize: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_states))
        self.normalize = normalize

    def forward(self, hidden_states: Sequence[Tensor]) -> Tensor:
        """Combine L + 1 hidden states of shape `(B, T, D)` into one."""
        if len(hidden_states) != len(self.weight):
            raise ValueError(
                f"Expected {len(self.weight)} hidden states (the speech encoder's layers and its input), "
                f"but got {len(hidden_states)}."
            )
        weights = self.weight.float().softmax(dim=0)
        total = torch.zeros((), dtype=hidden_states[0].dtype, device=weights.device)
        for hidden, weight in zip(hidden_states, weights, strict=True):
            if self.normalize:
                hidden = F.layer_norm(hidden, hidden.shape[-1:])
            # One pass over each state: stacking them would copy them all.
            total = torch.addcmul(total, hidden, weight.to(hidden.dtype))
        return total
