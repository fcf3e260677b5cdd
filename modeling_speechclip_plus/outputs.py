"""Outputs of the model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class SpeechClipPlusAudioOutput(ModelOutput):
    """Output of [`SpeechClipPlusModel.encode_audio`]: what each utterance gives by itself.

    B utterances, N keywords (of the longest utterance), P joint width, E width of CLIP's token embeddings.

    Attributes:
        parallel_embeds (`(B, P)`, with a parallel branch): Unit-length embedding by that branch.
        keyword_features (`(B, N, E)`, with a cascaded branch): Keywords before batch norm and quantiser.

    `keyword_lengths`, `alphas`, `alpha_sums`, `target_lengths`, `frame_lengths`, `hidden_states`, `attentions` and
    `branch_attentions` are those of [`SpeechClipPlusOutput`].
    """

    parallel_embeds: Tensor | None = None
    keyword_features: Tensor | None = None
    keyword_lengths: Tensor | None = None
    alphas: Tensor | None = None
    alpha_sums: Tensor | None = None
    target_lengths: Tensor | None = None
    frame_lengths: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    branch_attentions: tuple[Tensor, ...] | None = None


@dataclass
class SpeechClipPlusOutput(ModelOutput):
    """Output of [`SpeechClipPlusModel`].

    B utterances and images, N keywords (of the longest utterance), T frames (50 per second), P joint width.

    Attributes:
        loss (scalar, float32, with `return_loss`): Weighted sum of the losses.
        parallel_loss (scalar, float32, with `return_loss` and a parallel branch): Contrastive loss of that branch.
        cascaded_loss (scalar, float32, with `return_loss` and a cascaded branch): Contrastive loss of that branch.
        expected_loss (scalar, float32, with `return_loss` and `loss_config.expected_weight`): Contrastive loss of
            the expected tokens.
        quantity_loss (scalar, float32, with `return_loss` and CIF): Keyword-count loss, before its weight.
        parallel_logits (`(B_speech, B_image)`, with images and a parallel branch): Scaled similarities.
        cascaded_logits (`(B_speech, B_image)`, with images and a cascaded branch): Scaled similarities.
        speech_embeds (`(B, P)`): Unit-length embedding of each utterance by the configured `retrieval_branch`.
        parallel_embeds (`(B, P)`, with a parallel branch): Unit-length embedding by that branch.
        cascaded_embeds (`(B, P)`, with a cascaded branch): Unit-length embedding by that branch.
        expected_embeds (`(B, P)`, in training with `loss_config.expected_weight`): Unit-length embedding of the
            expected tokens.
        image_embeds (`(B, P)`, with images): Unit-length image embeddings.
        keyword_ids (`(B, N)` int64, with a cascaded branch): CLIP token of each keyword, -1 at padding.
        keyword_lengths (`(B,)` int64, with a cascaded branch): Keywords of each utterance.
        keyword_similarities (`(B, N)` float32, with a cascaded branch): Cosine similarity of keyword feature and
            token, 0 at padding.
        keyword_embeds (`(B, N, E)`, with a cascaded branch): The tokens' embeddings.
        keyword_spans (`(B, N, 2)` float32, with CIF in evaluation): Start and end of each keyword in frames, 0 at
            padding.
        alphas (`(B, T)` float32, with CIF): Weights as integrated, 0 at padding.
        alpha_sums (`(B,)` float32, with CIF): Sums of the weights before scaling.
        target_lengths (`(B,)` int64, with CIF): Wanted numbers of keywords; None in evaluation if they are those of
            captions and were not given.
        frame_lengths (`(B,)` int64): Frames of each utterance.
        hidden_states (tuple of L + 1 `(B, T, D)`, with `output_hidden_states`): The speech encoder's, before any
            final norm.
        attentions (tuple of L `(B, heads, T, T)`, with `output_attentions`): The speech encoder's.
        branch_attentions (tuple of `(B, heads, S, S)`, with `output_attentions`): The branch's, over CLS vectors
            and frames.
    """

    loss: Tensor | None = None
    parallel_loss: Tensor | None = None
    cascaded_loss: Tensor | None = None
    expected_loss: Tensor | None = None
    quantity_loss: Tensor | None = None
    parallel_logits: Tensor | None = None
    cascaded_logits: Tensor | None = None
    speech_embeds: Tensor | None = None
    parallel_embeds: Tensor | None = None
    cascaded_embeds: Tensor | None = None
    expected_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    keyword_ids: Tensor | None = None
    keyword_lengths: Tensor | None = None
    keyword_similarities: Tensor | None = None
    keyword_embeds: Tensor | None = None
    keyword_spans: Tensor | None = None
    alphas: Tensor | None = None
    alpha_sums: Tensor | None = None
    target_lengths: Tensor | None = None
    frame_lengths: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    branch_attentions: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class Neighbour:
    """A token near a keyword: its text (`None` without a tokenizer), CLIP id and cosine similarity."""

    text: str | None
    id: int
    similarity: float


@dataclass(frozen=True)
class Keyword:
    """A keyword read out of an utterance.

    Attributes:
        text: The token as text; `None` without a tokenizer.
        id: Its CLIP id.
        similarity: Cosine similarity of the keyword's feature and the token's embedding.
        start: Where the keyword begins, in seconds; `None` in the fixed-number variants, which do not locate it.
        end: Where it ends, in seconds; `None` likewise.
        neighbours: The tokens of the vocabulary whose embeddings are nearest to the keyword's, itself first.
    """

    text: str | None
    id: int
    similarity: float
    start: float | None
    end: float | None
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True)
class Localization:
    """Where in an utterance a query was found.

    Attributes:
        scores (`Tensor` of shape `(T,)`, float32): Cosine similarity of the query and what surrounds each frame.
        start: Where the span with the highest scores begins, in seconds.
        end: Where it ends, in seconds.
    """

    scores: Tensor
    start: float
    end: float
