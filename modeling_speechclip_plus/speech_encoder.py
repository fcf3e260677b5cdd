"""Speech encoders behind one interface: their input, frames and hidden states, and the weighted sum of the latter.

A further kind of encoder is a subclass of `SpeechEncoderAdapter` and a line in `SPEECH_ENCODERS`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from .audio_utils import SAMPLING_RATE


class SpeechEncoderAdapter:
    """Facts and calls that a [`SpeechClipPlusModel`] needs of one kind of speech encoder.

    Args:
        config: The speech encoder's configuration.

    Attributes:
        input_name: What the encoder's forward and its feature extractor call the input.
        input_shape: Its shape, for errors.
        time_dim: Its dimension of time.
        fixed_length: Whether the encoder reads inputs of one length only.
        samples_per_frame: Samples at 16 kHz from one frame to the next.
        minimum_samples: Samples at 16 kHz that one whole frame needs.
    """

    input_name = "input_features"
    input_shape = "(B, T, F)"
    time_dim = 1
    fixed_length = False
    samples_per_frame = 320
    minimum_samples = 320

    def __init__(self, config: PreTrainedConfig):
        self.config = config

    @property
    def seconds_per_frame(self) -> float:
        """Seconds from one frame to the next."""
        return self.samples_per_frame / SAMPLING_RATE

    def build(self, padding: str) -> PreTrainedModel:
        """Build the encoder with new weights; `padding` as in [`SpeechClipPlusConfig`]."""
        return AutoModel.from_config(self.config, dtype=torch.get_default_dtype())

    def load(self, source: str, **kwargs: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
        """Load the encoder by `from_pretrained`, with the report that `output_loading_info=True` gives."""
        return AutoModel.from_pretrained(source, output_loading_info=True, **kwargs)

    def dropout_modules(self, encoder: PreTrainedModel) -> list[nn.Module]:
        """Parts that are put into training mode by `speech_encoder_dropout`, so that their dropout is active."""
        return [encoder.feature_projection, encoder.encoder.layers, encoder.encoder.dropout]

    def check_input(self, inputs: Tensor, attention_mask: Tensor | None) -> None:
        """Check the input and its mask, without waiting for the device.

        Raises:
            TypeError: If the input is no tensor.
            ValueError: If a shape or dtype is wrong, or the input is too short for one frame.
        """
        if not isinstance(inputs, Tensor):
            raise TypeError(
                f"input_values must be a tensor of shape {self.input_shape}, but is a {type(inputs).__name__}. "
                "SpeechClipPlusProcessor makes one from arrays, lists and files."
            )
        shape = tuple(inputs.shape)
        if len(shape) != self.input_shape.count(",") + 1 or not inputs.is_floating_point():
            raise ValueError(
                f"input_values of a {self.config.model_type} encoder must be floating-point and of shape "
                f"{self.input_shape}, but are {inputs.dtype} of {shape}."
            )
        if shape[0] == 0:
            raise ValueError("input_values holds no utterance: the batch is empty.")
        expected = (shape[0], shape[self.time_dim])
        if attention_mask is not None and tuple(attention_mask.shape) != expected:
            raise ValueError(
                f"attention_mask must have the shape of input_values over time, {expected}, "
                f"but has {tuple(attention_mask.shape)}."
            )

    def encode(
        self,
        encoder: PreTrainedModel,
        inputs: Tensor,
        attention_mask: Tensor | None,
        *,
        padding: str,
        output_attentions: bool = False,
    ) -> tuple[tuple[Tensor, ...], Tensor, tuple[Tensor, ...] | None]:
        """Run the encoder.

        Args:
            encoder: What `build` or `load` returned.
            inputs: Of `input_shape`, zero-padded on the right.
            attention_mask: `(B, length)`, 1 for what is no padding; `None` if nothing is padded.
            padding: `"invariant"` or `"original"`, as in [`SpeechClipPlusConfig`].
            output_attentions: Whether to return the encoder's attention weights.

        Returns:
            The L + 1 hidden states `(B, T, D)` (what enters the first layer, then each layer's output, before any
            final norm), the frames of each utterance `(B,)` int64, and the attention weights or `None`.
        """
        inputs, attention_mask, frame_lengths = self.prepare(encoder, inputs, attention_mask, padding)
        outputs = encoder(
            inputs, attention_mask=attention_mask, output_hidden_states=True, output_attentions=output_attentions
        )
        return outputs.hidden_states, frame_lengths, outputs.attentions if output_attentions else None

    def prepare(
        self, encoder: PreTrainedModel, inputs: Tensor, attention_mask: Tensor | None, padding: str
    ) -> tuple[Any, Tensor | None, Tensor]:
        """Return the input and the mask of the encoder's forward, and the frames of each utterance `(B,)` int64."""
        return inputs, attention_mask, self.frame_lengths(inputs, attention_mask)

    def frame_lengths(self, inputs: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Frames of each utterance, `(B,)` int64, of which one and more are valid."""
        if attention_mask is None:
            return torch.full((inputs.shape[0],), inputs.shape[self.time_dim], device=inputs.device)
        lengths = attention_mask.sum(dim=1)
        self.check_frame_lengths(lengths)
        return lengths

    def check_frame_lengths(self, frame_lengths: Tensor) -> None:
        """Raise a `ValueError` if an utterance has no frame."""
        message = (
            f"an utterance is shorter than the {self.minimum_samples} samples that give one frame; "
            "leave it out or pad it before it reaches the model"
        )
        if torch.compiler.is_exporting():
            return  # an exported graph has no branches on values
        if frame_lengths.device.type == "cpu":
            if bool((frame_lengths < 1).any()):
                rows = (frame_lengths < 1).nonzero().flatten().tolist()
                raise ValueError(f"attention_mask: {message} (rows {rows}).")
        else:
            torch._assert_async((frame_lengths > 0).all(), message)  # no wait for the device


class WaveformEncoderAdapter(SpeechEncoderAdapter):
    """HuBERT, WavLM and wav2vec 2.0, which read waveforms.

    Models of base size average over time in a group norm, which is made length-aware for `padding="invariant"`.
    """

    input_name = "input_values"
    input_shape = "(B, S)"

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.samples_per_frame = math.prod(config.conv_stride)
        samples = 1
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            samples = (samples - 1) * stride + kernel
        self.minimum_samples = samples

    def build(self, padding: str) -> PreTrainedModel:
        """See the base class."""
        encoder = super().build(padding)
        if padding == "invariant" and self.config.feat_extract_norm == "group":
            encoder.feature_extractor = LengthAwareFeatureEncoder(encoder.feature_extractor)
        return encoder

    def check_input(self, inputs: Tensor, attention_mask: Tensor | None) -> None:
        """See the base class."""
        super().check_input(inputs, attention_mask)
        samples = inputs.shape[1]
        if samples < self.minimum_samples:
            raise ValueError(
                f"input_values has {samples} samples ({samples / SAMPLING_RATE * 1000:.0f} ms at 16 kHz); "
                f"the speech encoder needs at least {self.minimum_samples} for one frame."
            )

    def convolution_lengths(self, lengths: Any) -> Any:
        """Frames that the convolutions give for `lengths` samples."""
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            lengths = (lengths - kernel) // stride + 1
        return lengths

    def prepare(
        self, encoder: PreTrainedModel, inputs: Tensor, attention_mask: Tensor | None, padding: str
    ) -> tuple[Any, Tensor | None, Tensor]:
        """See the base class."""
        total = inputs.shape[1]
        num_frames = self.convolution_lengths(total)
        if attention_mask is None:
            return inputs, None, torch.full((inputs.shape[0],), num_frames, device=inputs.device)
        sample_lengths = attention_mask.sum(dim=1)
        if padding == "invariant":
            frame_lengths = self.convolution_lengths(sample_lengths)
            self.check_frame_lengths(frame_lengths)
            length_aware = isinstance(encoder.feature_extractor, LengthAwareFeatureEncoder)
            return (inputs, sample_lengths) if length_aware else inputs, attention_mask, frame_lengths
        # The original counts frames by rounding, while its encoder's mask cuts the padded length into T equal
        # chunks and keeps each that holds a sample; its mask can so be a frame or two longer.
        frame_lengths = torch.round(sample_lengths / self.samples_per_frame).long().clamp(1, num_frames)
        chunk = total // num_frames
        kept = (sample_lengths + chunk - 1) // chunk
        # The library counts in its own way: give it a sample mask from which it derives these frames.
        samples = (kept.clamp(max=num_frames) - 1) * self.samples_per_frame + self.minimum_samples
        return inputs, (torch.arange(total, device=samples.device) < samples[:, None]).long(), frame_lengths


class Wav2Vec2BertAdapter(SpeechEncoderAdapter):
    """w2v-BERT 2.0, which reads two stacked log-mel frames of 10 ms at a time and hides padding in every layer."""

    minimum_samples = 560  # two windows of 400 samples, 160 apart


class WhisperAdapter(SpeechEncoderAdapter):
    """Whisper's encoder, which reads log-mel features of exactly 30 s, silence behind an utterance included.

    It has no mask: an utterance's frames attend to the silence behind it, which is the same whatever it is batched
    with. Frames of that silence are cut off the hidden states.
    """

    input_shape = "(B, F, T)"
    time_dim = 2
    fixed_length = True

    def build(self, padding: str) -> PreTrainedModel:
        """See the base class."""
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        self.config.tie_last_hidden_states = False  # the last hidden state is wanted before the final norm
        return WhisperEncoder._from_config(self.config, dtype=torch.get_default_dtype())

    def load(self, source: str, **kwargs: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
        """See the base class."""
        model, report = AutoModel.from_pretrained(source, output_loading_info=True, **kwargs)
        return model.get_encoder(), report

    def dropout_modules(self, encoder: PreTrainedModel) -> list[nn.Module]:
        """See the base class."""
        return [encoder.layers]

    def frame_lengths(self, inputs: Tensor, attention_mask: Tensor | None) -> Tensor:
        """See the base class."""
        return (super().frame_lengths(inputs, attention_mask) + 1) // 2  # the second convolution's stride

    def encode(self, encoder: PreTrainedModel, inputs: Tensor, attention_mask: Tensor | None, **options: Any) -> Any:
        """See the base class."""
        hidden_states, frame_lengths, attentions = super().encode(encoder, inputs, attention_mask, **options)
        if not torch.compiler.is_exporting():  # there shapes cannot depend on values
            longest = int(frame_lengths.max())
            hidden_states = tuple(state[:, :longest] for state in hidden_states)
        return hidden_states, frame_lengths, attentions


SPEECH_ENCODERS: dict[str, type[SpeechEncoderAdapter]] = {
    "hubert": WaveformEncoderAdapter,
    "wavlm": WaveformEncoderAdapter,
    "wav2vec2": WaveformEncoderAdapter,
    "wav2vec2-bert": Wav2Vec2BertAdapter,
    "whisper": WhisperAdapter,
}
"""The adapter of each `model_type`."""


def speech_encoder_adapter(speech_config: PreTrainedConfig) -> SpeechEncoderAdapter:
    """Make the adapter of a speech encoder.

    Raises:
        ValueError: If there is none for its kind.
    """
    if speech_config.model_type not in SPEECH_ENCODERS:
        raise ValueError(
            f"speech_config has model_type {speech_config.model_type!r}; "
            f"the speech encoder must be one of {', '.join(SPEECH_ENCODERS)}."
        )
    return SPEECH_ENCODERS[speech_config.model_type](speech_config)


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

    def forward(self, hidden_states: Sequence[Tensor] | Tensor) -> Tensor:
        """Combine L + 1 hidden states `(B, T, D)`, or one tensor of them `(B, L + 1, T, D)`, into one `(B, T, D)`."""
        count = hidden_states.shape[1] if isinstance(hidden_states, Tensor) else len(hidden_states)
        if count != len(self.weight):
            raise ValueError(
                f"Expected {len(self.weight)} hidden states (the speech encoder's layers and its input), "
                f"but got {count}."
            )
        weights = self.weight.float().softmax(dim=0)
        if isinstance(hidden_states, Tensor):
            if self.normalize:
                hidden_states = F.layer_norm(hidden_states, hidden_states.shape[-1:])
            weights = weights.to(hidden_states.dtype).expand(hidden_states.shape[0], 1, -1)
            return torch.bmm(weights, hidden_states.flatten(2)).view(hidden_states[:, 0].shape)
        total = torch.zeros((), dtype=hidden_states[0].dtype, device=weights.device)
        for hidden, weight in zip(hidden_states, weights, strict=True):
            if self.normalize:
                hidden = F.layer_norm(hidden, hidden.shape[-1:])
            # One pass over each state: stacking them would copy them all.
            total = torch.addcmul(total, hidden, weight.to(hidden.dtype))
        return total
