"""Which rows meet in a training batch, and which process gets which of them.

The order of an epoch follows from the seed and the epoch alone, so that a resumed run meets the rows it would have
met, and a run of several processes those of one.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import soundfile
import torch
from torch.utils.data import IterableDataset, Sampler

from ..modeling_speechclip_plus.audio_utils import SAMPLING_RATE

_BATCHES_SORTED_TOGETHER = 16


class LengthGroupedBatches(Sampler[int]):
    """Rows in random order, sorted by length within groups of batches, the batches then shuffled.

    Little of a batch is padding, and which rows meet still changes with every epoch. Unlike the one of
    `transformers`, batches do not run from long to short, which would drag running statistics along.

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
        generator = _generator(self.seed, self.epoch)
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


class ShuffledRows(Sampler[int]):
    """Rows in random order.

    Args:
        count: number of rows.
        seed: of the order.
    """

    def __init__(self, count: int, seed: int = 0) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        """Choose another order."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(self.count, generator=_generator(self.seed, self.epoch)).tolist()


class SharedBatches(Sampler[list[int]]):
    """A process's share of every batch, such that the processes together have the batches of one process.

    Process r takes every N-th row from the r-th on, so that batches sorted by length are of about equal work. The
    last batch of an epoch may be smaller, and the shares differ by a row; if it has fewer rows than there are
    processes, none gets any.

    Args:
        rows: the order of all rows, the same on every process.
        batch_size: rows of a batch of all processes together.
        rank: number of this process.
        num_processes: how many there are.
        drop_last: leave out an incomplete batch.

    Example:
        >>> [list(SharedBatches(range(7), 4, rank, 2)) for rank in (0, 1)]
        [[[0, 2], [4, 6]], [[1, 3], [5]]]
    """

    def __init__(
        self, rows: Any, batch_size: int, rank: int = 0, num_processes: int = 1, drop_last: bool = False
    ) -> None:
        self.rows, self.batch_size = rows, batch_size
        self.rank, self.num_processes, self.drop_last = rank, num_processes, drop_last

    def __len__(self) -> int:
        whole, rest = divmod(len(self.rows), self.batch_size)
        return whole + (not self.drop_last and rest >= self.num_processes)

    def set_epoch(self, epoch: int) -> None:
        """Choose another order, if the rows have one for every epoch."""
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.rows)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield order[start : start + self.batch_size][self.rank :: self.num_processes]


class StreamShare(IterableDataset):
    """A process's share of a stream, begun anew whenever it ends.

    Without an end no process runs out of rows before the others; training ends at its `max_steps`.

    Args:
        stream: a `datasets.IterableDataset`. With as many files as processes each reads files of its own; otherwise
            all read everything and keep their share.
        rank: number of this process.
        num_processes: how many there are.
    """

    def __init__(self, stream: Any, rank: int = 0, num_processes: int = 1) -> None:
        from datasets.distributed import split_dataset_by_node

        self.stream = split_dataset_by_node(stream, rank=rank, world_size=num_processes)

    def __iter__(self) -> Iterator[Any]:
        epoch, found = 0, True
        while found:
            found = False
            self.stream.set_epoch(epoch)
            for row in self.stream:
                found = True
                yield row
            epoch += 1


def utterance_lengths(audio: Sequence[Any]) -> list[int]:
    """Lengths of utterances in samples at 16 kHz, read from the files' headers.

    Args:
        audio: as the data sets of this package hold them: dictionaries with `bytes` or `path`, or with `array` and
            `sampling_rate`.
    """
    lengths = []
    for row, item in enumerate(audio):
        if isinstance(item, Mapping) and item.get("array") is not None:
            samples, rate = len(item["array"]), item["sampling_rate"]
        else:
            source = item.get("bytes") or item.get("path") if isinstance(item, Mapping) else item
            try:
                header = soundfile.info(io.BytesIO(source) if isinstance(source, bytes) else str(source))
            except (soundfile.LibsndfileError, OSError) as error:
                raise ValueError(f"The length of the audio of row {row} cannot be read: {error}") from error
            samples, rate = header.frames, header.samplerate
        lengths.append(round(samples * SAMPLING_RATE / rate))
    return lengths


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed + 1) * 1_000_003 + epoch)
