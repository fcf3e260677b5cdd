"""Samplers for training: which rows meet in a batch, and which process gets which of them.

The order of an epoch follows from the seed and the epoch alone, so that a resumed run meets the rows it would have
met, and a run of several processes those of one. The samplers of transformers draw from the global generator, and
fill or drop the last batch of several processes.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler
from transformers.trainer_utils import has_length, seed_worker

from ..modeling_speechclip_plus.audio_utils import SAMPLING_RATE
from .collator import SpeechImageCollator
from .data.schema import audio_seconds
from .training_arguments import SpeechClipPlusTrainingArguments as TrainingArguments

_BATCHES_SORTED_TOGETHER = 16


def epoch_order(
    count: int, epoch: int = 0, seed: int = 0, lengths: Sequence[int] | None = None, batch_size: int = 1
) -> list[int]:
    """Rows in the random order of an epoch.

    With `lengths` of all rows, in any unit, rows are sorted by them within groups of batches of `batch_size`, and the
    batches shuffled: little of a batch is padding, and which rows meet still changes with every epoch.

    Example:
        >>> order = epoch_order(4, lengths=[5, 1, 4, 2], batch_size=2)
        >>> sorted(map(sorted, (order[:2], order[2:])))
        [[0, 2], [1, 3]]
    """
    generator = torch.Generator().manual_seed((seed + 1) * 1_000_003 + epoch)
    order = torch.randperm(count, generator=generator).tolist()
    if lengths is None:
        return order
    # The incomplete batch stays at the end, where a loader expects it (and may drop it).
    whole = count - count % batch_size
    group = batch_size * _BATCHES_SORTED_TOGETHER
    batches = []
    for start in range(0, whole, group):
        rows = sorted(order[start : min(start + group, whole)], key=lengths.__getitem__)
        batches += [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    shuffled = torch.randperm(len(batches), generator=generator).tolist()
    return [row for batch in shuffled for row in batches[batch]] + order[whole:]


class SharedBatches(Sampler[list[int]]):
    """A process's share of every batch, such that the processes together have the batches of one process.

    Of `count` rows in the `order` of an epoch, `batch_size` make up a batch of all processes. Process `rank` takes
    every N-th row from there on, so that batches sorted by length are of about equal work. An incomplete last batch
    is left out if it is a single row, which has no negatives, or has fewer rows than there are processes.

    Example:
        >>> [list(SharedBatches(7, lambda epoch: range(7), 4, rank, 2)) for rank in (0, 1)]
        [[[0, 2], [4, 6]], [[1, 3], [5]]]
    """

    def __init__(
        self,
        count: int,
        order: Callable[[int], Sequence[int]],
        batch_size: int,
        rank: int = 0,
        num_processes: int = 1,
        drop_last: bool = False,
    ) -> None:
        self.count, self.order, self.batch_size, self.epoch = count, order, batch_size, 0
        self.rank, self.num_processes, self.drop_last = rank, num_processes, drop_last

    def __len__(self) -> int:
        whole, rest = divmod(self.count, self.batch_size)
        return whole + (not self.drop_last and rest >= max(2, self.num_processes))

    def set_epoch(self, epoch: int) -> None:
        """Choose another order."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order(self.epoch)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield list(order[start : start + self.batch_size][self.rank :: self.num_processes])


class StreamShare(IterableDataset):
    """A process's share of a stream, begun anew whenever it ends, so that no process runs out of rows first."""

    def __init__(self, stream: Any, rank: int = 0, num_processes: int = 1) -> None:
        from datasets.distributed import split_dataset_by_node

        self.stream = split_dataset_by_node(stream, rank=rank, world_size=num_processes)

    def __iter__(self) -> Iterator[Any]:
        for epoch in itertools.count():
            self.stream.set_epoch(epoch)
            row = None
            for row in self.stream:
                yield row
            if row is None:  # an empty stream
                return


def stored_column(dataset: Any, name: str) -> list[Any]:
    """Read a column of a `datasets.Dataset` as stored: a transform would be run on whole rows for it."""
    return list(dataset.with_format(None)[name])


def utterance_lengths(audio: Sequence[Any]) -> list[int]:
    """Lengths of utterances in samples at 16 kHz, read from the files' headers; a broken one is a ValueError."""
    return [round(audio_seconds(item, f"audio of row {row}") * SAMPLING_RATE) for row, item in enumerate(audio)]


def training_dataloader(dataset: Any, collator: Any, args: TrainingArguments, batch_size: int) -> DataLoader:
    """Make the loader of this process's share, `batch_size` rows at a time, in which long utterances are cropped.

    Raises:
        ValueError: If there is no data or too little for the processes, or a stream without `max_steps`.
    """
    if dataset is None:
        raise ValueError("There is nothing to train on: give train_dataset.")
    seed = args.seed if args.data_seed is None else args.data_seed
    if isinstance(collator, SpeechImageCollator):
        collator = collator.for_training(args.max_audio_samples, seed)
    names = "num_workers pin_memory persistent_workers prefetch_factor multiprocessing_context in_order".split()
    shared: dict[str, Any] = {name: getattr(args, f"dataloader_{name}") for name in names}
    # A generator of its own: otherwise every epoch would draw from the one that dropout draws from.
    shared |= {"collate_fn": collator, "generator": torch.Generator().manual_seed(seed)}
    # Not given to accelerate, which would fill up the last batch with rows of the first, and let one process read
    # streams for all.
    if not has_length(dataset):
        if args.max_steps <= 0:
            raise ValueError("A stream does not tell its length: give max_steps, after which training ends.")
        if args.train_sampling_strategy == "group_by_length":
            raise ValueError("A stream cannot be grouped by length: use train_sampling_strategy='random'.")
        stream = StreamShare(dataset, args.process_index, args.world_size)
        return DataLoader(stream, batch_size=batch_size, drop_last=True, **shared)
    rows, together = len(dataset), batch_size * args.world_size
    order = partial(epoch_order, rows, seed=seed)
    if args.train_sampling_strategy == "group_by_length":
        per_step = together * args.gradient_accumulation_steps
        order = partial(order, lengths=_row_lengths(dataset, args), batch_size=per_step)
    batches = SharedBatches(rows, order, together, args.process_index, args.world_size, args.dataloader_drop_last)
    if len(batches) == 0:
        raise ValueError(
            f"{rows} rows make no batch for {args.world_size} processes of {batch_size} each "
            f"(dataloader_drop_last={args.dataloader_drop_last}); a single row has no negatives."
        )
    seed_workers = partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index)
    return DataLoader(dataset, batch_sampler=batches, worker_init_fn=seed_workers, **shared)


def _row_lengths(dataset: Any, args: TrainingArguments) -> Sequence[int]:
    if args.length_column_name in dataset.column_names:
        return stored_column(dataset, args.length_column_name)
    lengths = utterance_lengths(dataset.select_columns(["audio"])["audio"])
    return [min(length, args.max_audio_samples or length) for length in lengths]
