"""Localization of a query in speech: its similarity to every frame, and the span where that is highest."""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW_S = 0.28  # seconds: about a spoken word
WINDOW_STEP = 2  # frames from one window to the next
WINDOW_BATCH = 64  # windows that are embedded together


def window_starts(num_frames: int, width: int) -> list[int]:
    """First frames of overlapping windows of `width` frames, the last of which ends with the utterance."""
    return [*range(0, num_frames - width, WINDOW_STEP), num_frames - width]


def frame_scores(similarities: Tensor, starts: list[int], width: int, num_frames: int) -> Tensor:
    """Mean similarity of the windows that each frame lies in, `(T,)`, of those of the windows `(W,)`.

    Example:
    ```python
    >>> frame_scores(torch.tensor([0.0, 1.0]), [0, 1], width=2, num_frames=3)
    tensor([0.0000, 0.5000, 1.0000])

    ```
    """
    frames, first = torch.arange(num_frames), torch.tensor(starts)[:, None]
    covers = ((frames >= first) & (frames < first + width)).to(similarities.dtype)  # (W, T)
    return similarities @ covers / covers.sum(dim=0)


def best_span(scores: Tensor) -> tuple[int, int]:
    """First frame, and the frame behind the last, around the peak of scores `(T,)`: down to halfway to their mean.

    Example:
    ```python
    >>> best_span(torch.tensor([0.0, 0.1, 0.8, 0.9, 0.2]))
    (2, 4)

    ```
    """
    low = (scores <= (scores.max() + scores.mean()) / 2) & (scores < scores.max())
    peak = int(scores.argmax())
    before, behind = low[:peak].nonzero().flatten(), low[peak:].nonzero().flatten()
    start = int(before[-1]) + 1 if len(before) else 0
    return start, peak + int(behind[0]) if len(behind) else len(scores)
