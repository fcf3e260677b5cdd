"""Continuous Integrate-and-Fire: from frames to a variable number of keywords (arXiv 2402.06959, section 2.2).

Frame `t` of an utterance carries a weight `alpha_t`. On the axis of accumulated weight it occupies the interval
from `c_{t-1}` to `c_t`, where `c` is the running sum, and keyword `n` collects the interval from `n b` to `(n+1) b`,
where `b` is the threshold. How much of a frame a keyword collects is the overlap of the two intervals, so that the
whole of integrate-and-fire, splits and bursts included, is one weighted sum of frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

# Added to the target so that rounding cannot leave the last keyword just below the threshold.
TARGET_MARGIN = 1e-5


@dataclass
class CifOutput:
    """What integrate-and-fire made of a batch.

    Attributes:
        keywords (`Tensor` of shape `(B, N, D)`): Keyword features; zero behind `lengths` unless the residue is kept.
        lengths (`Tensor` of shape `(B,)`, int64): Keywords per utterance, at least 1.
        alphas (`Tensor` of shape `(B, T)`, float32): Weights that were integrated, 0 at padding.
        alpha_sums (`Tensor` of shape `(B,)`, float32): Sums of the weights before any scaling.
    """

    keywords: Tensor
    lengths: Tensor
    alphas: Tensor
    alpha_sums: Tensor


class ContinuousIntegrateAndFire(nn.Module):
    """Predict a weight per frame and integrate the frames into keywords.

    Args:
        hidden_size: Width D of the frames.
        threshold: Accumulated weight at which a keyword fires.
        conv_layers: Number of convolutions over time.
        conv_width: Their kernel width in frames, odd.
        dropout: Dropout after each convolution and before the linear map.
        tail_threshold: Weight from which a remainder becomes one more keyword in evaluation.
        max_keywords: Most keywords an utterance can have; what comes behind them is dropped.
        mask_padding: Whether padding is hidden from the convolutions and the residue behind the last keyword
            dropped, which makes an utterance's keywords independent of its batch. The original does neither.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        threshold: float = 1.0,
        conv_layers: int = 1,
        conv_width: int = 3,
        dropout: float = 0.5,
        tail_threshold: float = 0.5,
        max_keywords: int = 75,
        mask_padding: bool = True,
    ):
        super().__init__()
        self.threshold = threshold
        self.tail_threshold = tail_threshold
        self.max_keywords = max_keywords
        self.mask_padding = mask_padding
        self.convolutions = nn.ModuleList(
            nn.Conv1d(hidden_size, hidden_size, conv_width, padding=conv_width // 2) for _ in range(conv_layers)
        )
        self.dropout = nn.Dropout(dropout)
        self.weight_projection = nn.Linear(hidden_size, 1)

    def init_weights(self, frames_per_keyword: int) -> None:
        """Let a new module fire about every `frames_per_keyword` frames.

        The original starts at weights of 0.5 a frame: ten times too many keywords fire, and the quantity loss drowns
        the others until that is unlearnt.
        """
        share = min(0.5, self.threshold / frames_per_keyword)
        init.uniform_(self.weight_projection.weight, -0.01, 0.01)
        init.constant_(self.weight_projection.bias, math.log(share / (1 - share)))

    def predict_alphas(self, frames: Tensor, frame_mask: Tensor) -> Tensor:
        """Predict the weights of frames `(B, T, D)` under a mask `(B, T)` (True: a frame): `(B, T)`, in [0, 1]."""
        hidden = frames.transpose(1, 2)  # (B, D, T)
        for convolution in self.convolutions:
            if self.mask_padding:
                # Without this the last frames would see the padding's values, and their weights the batch.
                hidden = hidden.masked_fill(~frame_mask[:, None], 0)
            hidden = F.relu(self.dropout(convolution(hidden)))
        logits = self.weight_projection(self.dropout(hidden.transpose(1, 2))).squeeze(-1)  # (B, T)
        return logits.float().sigmoid().masked_fill(~frame_mask, 0)

    def forward(
        self, frames: Tensor, frame_mask: Tensor, target_lengths: Tensor | None = None, scale: bool = False
    ) -> CifOutput:
        """Turn frames into keywords.

        Args:
            frames: `(B, T, D)`.
            frame_mask: `(B, T)` bool, True for a frame, False for padding.
            target_lengths: `(B,)`, given in training: wanted numbers of keywords. The remainder behind the last full
                keyword is then dropped; without it, in evaluation, it may become one more keyword.
            scale: Scale the weights so that exactly `target_lengths` keywords fire.
        """
        alphas = self.predict_alphas(frames, frame_mask)
        alpha_sums = alphas.sum(dim=1)
        lengths = None
        if scale:
            if target_lengths is None:
                raise ValueError("Scaling CIF's weights needs target_lengths, the wanted numbers of keywords.")
            alphas, lengths = scale_alphas(alphas, target_lengths, self.threshold)
        keywords, lengths = integrate_and_fire(
            frames,
            alphas,
            threshold=self.threshold,
            lengths=lengths,
            tail_threshold=self.tail_threshold if target_lengths is None else None,
            max_keywords=self.max_keywords,
            # The original leaves the residue in training, and clears it where it looks at tails.
            keep_residue=not self.mask_padding and target_lengths is not None,
        )
        return CifOutput(keywords=keywords, lengths=lengths, alphas=alphas.float(), alpha_sums=alpha_sums)


class FeatureChangeSegmentation(nn.Module):
    """Integrate-and-fire whose weights follow from the speech encoder alone: keywords begin where its states change.

    The change at a frame is one minus the cosine of the mean states before and behind it, cubed so that its peaks
    stand out. Accumulated over the utterance and cut into equal shares, one for each wanted keyword, it gives the
    segments; within a segment every frame weighs the same. Nothing here is trained.

    Args:
        threshold: Accumulated weight at which a keyword fires.
        max_keywords: Most keywords an utterance can have.
        window: Frames on either side of a frame whose means are compared.
    """

    def __init__(self, threshold: float = 1.0, max_keywords: int = 75, window: int = 3):
        super().__init__()
        self.threshold = threshold
        self.max_keywords = max_keywords
        self.window = window

    def forward(self, frames: Tensor, states: Tensor, frame_lengths: Tensor, target_lengths: Tensor) -> CifOutput:
        """Average the frames of each segment.

        Args:
            frames: `(B, T, D)` to average.
            states: `(B, T, H)` hidden states whose changes are the boundaries.
            frame_lengths: `(B,)` frames of each utterance.
            target_lengths: `(B,)` keywords of each utterance.
        """
        lengths = target_lengths.clamp(1, self.max_keywords)
        change = feature_change(states, frame_lengths, self.window)
        peaks, _ = scale_alphas(change**3, lengths)
        spans = keyword_times(peaks, frame_lengths, lengths, max_keywords=self.max_keywords)  # (B, N, 2)
        start, end = spans.to(peaks.dtype).split(1, dim=-1)
        first = torch.arange(frames.shape[1], device=frames.device, dtype=peaks.dtype)  # (T,), where a frame begins
        overlap = (torch.minimum(end, first + 1) - torch.maximum(start, first)).clamp(min=0)  # (B, N, T)
        shares = overlap / (end - start).clamp(min=torch.finfo(peaks.dtype).tiny)
        alphas, _ = scale_alphas(shares.sum(dim=1), lengths, self.threshold)
        keywords, lengths = integrate_and_fire(
            frames, alphas, threshold=self.threshold, lengths=lengths, max_keywords=self.max_keywords
        )
        return CifOutput(keywords, lengths, alphas.float(), alphas.sum(dim=1).float())


def feature_change(states: Tensor, frame_lengths: Tensor, window: int = 3) -> Tensor:
    """Change of hidden states at each frame, from the frames before it to those behind it.

    Args:
        states: `(B, T, H)`.
        frame_lengths: `(B,)` frames of each utterance; what follows them is not looked at.
        window: Frames on either side that are averaged; at its ends an utterance goes on as its outermost frame.

    Returns:
        `(B, T)` float32: one minus the cosine of the two means of the states, which are standardised over the
        utterance; from 1e-4 to 2, and 0 at padding.
    """
    length = states.shape[1]
    mask = torch.arange(length, device=states.device) < frame_lengths[:, None]  # (B, T)
    padding, count = ~mask[:, :, None], frame_lengths[:, None, None]
    states = states.float().masked_fill(padding, 0)
    states = (states - states.sum(dim=1, keepdim=True) / count).masked_fill(padding, 0)
    variance = torch.einsum("btd,btd->bd", states, states)[:, None] / count
    states = states * torch.rsqrt(variance + 1e-5)
    places = torch.arange(-window, length + window, device=states.device).clamp(min=0)
    places = places[None].minimum(frame_lengths[:, None] - 1)  # (B, T + 2 window)
    extended = states[torch.arange(states.shape[0], device=states.device)[:, None], places]
    num_sums = length + window + 1
    sums = extended[:, :num_sums].clone()  # (B, T + window + 1, H), of the window that begins at each place
    for shift in range(1, window):
        sums += extended[:, shift : shift + num_sums]
    norms = torch.linalg.vector_norm(sums, dim=-1).clamp(min=1e-8)
    before, behind = slice(0, length), slice(window + 1, None)
    change = 1 - torch.linalg.vecdot(sums[:, before], sums[:, behind]) / (norms[:, before] * norms[:, behind])
    return change.clamp(min=1e-4).masked_fill(~mask, 0)


def scale_alphas(alphas: Tensor, target_lengths: Tensor, threshold: float = 1.0) -> tuple[Tensor, Tensor]:
    """Scale weights so that exactly the target number of keywords fires.

    Args:
        alphas: `(B, T)`.
        target_lengths: `(B,)`, at least 1.
        threshold: Firing threshold b.

    Returns:
        `alphas * (b * target + 1e-5) / sum(alphas)`, in float64 so that no fire is misplaced, and the numbers of
        keywords `(B,)` int64. A row of zeros has nothing to scale: it stays zero, with one empty keyword.
    """
    precise = alphas.to(accumulation_dtype(alphas))
    sums = precise.sum(dim=1)
    fires = sums > 0
    ratio = (threshold * target_lengths + TARGET_MARGIN) / torch.where(fires, sums, 1)
    lengths = torch.where(fires, target_lengths, 1).long()
    return precise * torch.where(fires, ratio, 1).unsqueeze(1), lengths


def integrate_and_fire(
    frames: Tensor,
    alphas: Tensor,
    *,
    threshold: float = 1.0,
    lengths: Tensor | None = None,
    tail_threshold: float | None = None,
    max_keywords: int = 75,
    keep_residue: bool = False,
) -> tuple[Tensor, Tensor]:
    """Sum frames into keywords, splitting a frame where the accumulated weight crosses the threshold.

    Args:
        frames: `(B, T, D)`.
        alphas: `(B, T)` weights of at least 0, 0 at padding. Accumulated in float64 (float32 on MPS, which has no
            float64), since a half-precision running sum misplaces fires.
        threshold: Weight b of a full keyword.
        lengths: `(B,)` numbers of keywords if they are known; `floor(sum(alphas) / b)`, at least 1, otherwise.
        tail_threshold: If given, a remainder of at least this weight becomes one more keyword, scaled up to a full
            one. The scale carries no gradient, as in the original.
        max_keywords: Most keywords an utterance can have; what comes behind them is dropped.
        keep_residue: Leave what lies behind an utterance's last keyword in the padding of the result, as the
            original does; zero otherwise.

    Returns:
        Keywords `(B, N, D)` in the dtype of `frames`, and their numbers `(B,)` int64.

    Example:
    ```python
    >>> frames = torch.tensor([[[1.0], [2.0], [4.0]]])
    >>> keywords, lengths = integrate_and_fire(frames, torch.tensor([[0.75, 0.5, 0.75]]))
    >>> keywords.squeeze(-1).tolist(), lengths.tolist()
    ([[1.25, 3.5]], [2])

    ```
    """
    ends = alphas.to(accumulation_dtype(alphas)).cumsum(dim=1)  # (B, T)
    starts = F.pad(ends[:, :-1], (1, 0))
    sums = ends[:, -1]
    if lengths is None:
        lengths = (sums / threshold).floor().long()
    lengths = lengths.clamp(1, max_keywords)
    tail_scale = None
    if tail_threshold is not None:
        remainder = (sums - threshold * lengths).detach()
        extended = (remainder >= tail_threshold) & (lengths < max_keywords)
        tail_scale = torch.where(extended, threshold / remainder.clamp(min=tail_threshold), 1)
        lengths = lengths + extended
    num_keywords = _longest(lengths, max_keywords)

    slots = torch.arange(num_keywords, device=alphas.device)
    slot = slots[None, :, None]  # (1, N, 1)
    first = (starts / threshold).floor().long()[:, None]  # (B, 1, T), the keyword in which a frame begins
    last = (ends / threshold).floor().long()[:, None]  # and the one in which it ends
    # Which bound applies is decided by number and not by size, so that the gradient of a frame that ends just on a
    # multiple of the threshold goes to the next keyword, as in the original.
    upper = torch.where(slot == last, ends[:, None], threshold * (slot + 1))
    lower = torch.where(slot == first, starts[:, None], threshold * slot)
    weights = torch.where((first <= slot) & (slot <= last), upper - lower, 0)  # (B, N, T)
    if tail_scale is not None:
        is_tail = slots == lengths[:, None] - 1
        weights = weights * torch.where(is_tail, tail_scale[:, None], 1)[:, :, None]
    if not keep_residue:
        weights = weights.masked_fill((slots >= lengths[:, None])[:, :, None], 0)
    return weights.to(frames.dtype) @ frames, lengths  # (B, N, D)


def keyword_times(
    alphas: Tensor, frame_lengths: Tensor, lengths: Tensor, threshold: float = 1.0, max_keywords: int = 75
) -> Tensor:
    """Locate keywords in time, in fractions of frames.

    Keyword `n` begins where the accumulated weight reaches `n b` and ends where it reaches `(n+1) b`, interpolated
    inside the frame; the last keyword ends with the utterance if the weight does not reach that far.

    Args:
        alphas: `(B, T)` weights as integrated, 0 at padding.
        frame_lengths: `(B,)` frames of each utterance.
        lengths: `(B,)` keywords of each utterance.
        threshold: Firing threshold b.
        max_keywords: Most keywords an utterance can have, which is N in an exported model.

    Returns:
        `(B, N, 2)` float32, start and end of each keyword in frames; 0 behind `lengths`.
    """
    precise = alphas.to(accumulation_dtype(alphas))
    ends = precise.cumsum(dim=1)
    num_keywords = _longest(lengths, max_keywords)
    marks = threshold * torch.arange(num_keywords + 1, device=alphas.device, dtype=ends.dtype)
    marks = marks.expand(alphas.shape[0], -1).contiguous()  # (B, N + 1)
    frame = torch.searchsorted(ends, marks)  # first frame whose sum reaches the mark
    inside = frame.clamp(max=alphas.shape[1] - 1)
    begun = ends.gather(1, inside) - precise.gather(1, inside)
    times = inside + (marks - begun) / precise.gather(1, inside).clamp(min=torch.finfo(ends.dtype).tiny)
    times[:, 0] = 0
    last = frame_lengths[:, None].to(times.dtype)
    times = torch.where(frame >= alphas.shape[1], last, times).minimum(last)
    slots = torch.arange(num_keywords, device=alphas.device)
    spans = torch.stack([times[:, :-1], times[:, 1:]], dim=-1)
    return spans.masked_fill((slots >= lengths[:, None])[:, :, None], 0).float()


def _longest(lengths: Tensor, max_keywords: int) -> int:
    """Keywords of the utterance that has most."""
    if torch.compiler.is_exporting():  # there shapes cannot depend on values
        return max_keywords
    return int(lengths.max())  # the one place that waits for the device: a shape depends on it


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """Float64, or float32 on MPS devices, which have no float64."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64
