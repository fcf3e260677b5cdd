"""An order of the training rows that puts utterances of about the same length into one batch."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

_BATCHES_SORTED_TOGETHER = 16


class LengthGroupedBatches(Sampler[int]):
    """Rows in random order, sorted by length within groups of batches, the batches then shuffled.

    Little of a batch is padding, and which rows meet still changes with every epoch. Unlike the one of
    `transformers`, batches do not run from long to short, which would drag running statistics along; and an epoch's
    order follows from the seed and the epoch alone, so that a resumed run meets the rows it would have met.

    Args:
        lengths: of all rows, in any unit.
        batch_size: rows of a batch.
        seed: of the order.

    Example:
        >>> sampler = LengthGroupedBatches([5, 1, 4, 2], batch_size=2)
        >>> order = list(sampler)
        >>> sorted(map(sorted, (order[:2], order[2:])))
        [[0, 2], [1, 3]]
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int = 0) -> None:
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Choose another order."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self.seed + 1) * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        # The incomplete batch stays at the end, where a loader expects it (and may drop it).
        whole = len(order) - len(order) % self.batch_size
        group = self.batch_size * _BATCHES_SORTED_TOGETHER
        batches = []
        for start in range(0, whole, group):
            rows = sorted(order[start : min(start + group, whole)], key=self.lengths.__getitem__)
            batches += [rows[first : first + self.batch_size] for first in range(0, len(rows), self.batch_size)]
        for batch in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[batch]
        yield from order[whole:]
