"""Which examples make a batch, in which order, and how their tokens are filled up."""

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler

IGNORED = -100  # label of a position without loss


def padded(sequences: list[torch.Tensor], padding: int, side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """``(ids [B, L], mask [B, L])``."""
    ids = pad_sequence(sequences, batch_first=True, padding_value=padding, padding_side=side)
    ones = [torch.ones_like(sequence) for sequence in sequences]
    return ids, pad_sequence(ones, batch_first=True, padding_value=0, padding_side=side)


class TaskMixture(Dataset):
    """Several tasks behind one index: an item is asked for by (task, index, draw)."""

    def __init__(self, tasks: list) -> None:
        self.tasks = tasks

    def __len__(self) -> int:
        return sum(map(len, self.tasks))

    def __getitem__(self, key: Any) -> Any:
        task, index, draw = key
        return self.tasks[task][index, draw]


class RoundRobinBatches(Sampler):
    """``steps`` batches, each of one task: an epoch is all batches of all tasks in an order drawn from (seed, epoch).

    Yields keys of :class:`TaskMixture`. Under several processes each gets its share of every batch; a batch that does
    not divide evenly is filled up from its own beginning. With ``drop_last`` an epoch leaves out what does not fill a
    task's last batch. The order depends on nothing but the arguments, so training
    can go on in the middle of it.
    """

    def __init__(
        self,
        lengths: list[int],
        batch_sizes: list[int],
        *,
        steps: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        drop_last: bool = False,
    ) -> None:
        self.lengths, self.batch_sizes, self.steps, self.seed = lengths, batch_sizes, steps, seed
        self.drop_last = drop_last
        self.rank, self.processes = rank, processes

    @staticmethod
    def epoch_steps(lengths: list[int], batch_sizes: list[int], drop_last: bool = False) -> int:
        """Batches of an epoch."""
        pairs = zip(lengths, batch_sizes, strict=True)
        return sum(length // size if drop_last else -(-length // size) for length, size in pairs)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list]:
        step, epoch = 0, 0
        while step < self.steps:
            for batch in self._epoch(epoch)[: self.steps - step]:
                missing = -len(batch) % self.processes
                yield (batch + (batch * missing)[:missing])[self.rank :: self.processes]
                step += 1
            epoch += 1

    def _epoch(self, epoch: int) -> list[list[tuple[int, int, str]]]:
        draw = f"{self.seed} {epoch}"
        order_of = random.Random(draw)
        batches = []
        for task, (length, size) in enumerate(zip(self.lengths, self.batch_sizes, strict=True)):
            order = list(range(length))
            order_of.shuffle(order)
            keys = [(task, index, draw) for index in order]
            end = length - length % size if self.drop_last else length
            batches += [keys[start : start + size] for start in range(0, end, size)]
        order_of.shuffle(batches)
        return batches
