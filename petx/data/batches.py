"""Which examples make a batch, in which order, how their tokens are filled up, and where their features lie."""

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler, get_worker_info

IGNORED = -100  # label of a position without loss


def padded(sequences: list[torch.Tensor], padding: int, side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """``(ids [B, L], mask [B, L])``."""
    ids = pad_sequence(sequences, batch_first=True, padding_value=padding, padding_side=side)
    ones = [torch.ones_like(sequence) for sequence in sequences]
    return ids, pad_sequence(ones, batch_first=True, padding_value=0, padding_side=side)


def room_for(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """An empty tensor; in a data loader's worker in shared memory, as torch's own collate makes it, so that it is not
    copied on its way to the process that trains."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(dtype.itemsize * math.prod(shape))
    made: Any = torch.empty(0, dtype=dtype)
    return made.set_(storage, 0, shape)


def stacked(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """``torch.stack``, but that tensors which make up the whole of their storage, in order, are not copied."""
    first = tensors[0]
    alone = first.untyped_storage().nbytes() == len(tensors) * first.numel() * first.element_size()
    near = _neighbours(tensors) if alone else None  # of a larger storage all would be handed over
    return torch.stack(list(tensors)) if near is None else near


def joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """``torch.cat``, but that one tensor, or neighbours of one size in their storage, are not copied."""
    if len(tensors) == 1:
        return tensors[0]
    near = _neighbours(tensors)
    return torch.cat(list(tensors)) if near is None else near.flatten(0, 1)


def _neighbours(tensors: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """``tensors`` as one ``[n, ...]`` where they lie, if they are of one shape and lie one behind the other."""
    first = tensors[0]
    size, place = first.numel() * first.element_size(), first.untyped_storage().data_ptr()
    for i, one in enumerate(tensors):
        alike = one.shape == first.shape and one.dtype == first.dtype and one.is_contiguous()
        if not alike or one.untyped_storage().data_ptr() != place or one.data_ptr() != first.data_ptr() + i * size:
            return None
    return first.as_strided((len(tensors), *first.shape), (first.numel(), *first.stride()), first.storage_offset())


class TaskMixture(Dataset):
    """Several tasks behind one index: an item is asked for by (task, index, draw)."""

    def __init__(self, tasks: list) -> None:
        self.tasks = tasks

    def __len__(self) -> int:
        return sum(map(len, self.tasks))

    def __getitem__(self, key: Any) -> Any:
        task, index, draw = key
        return self.tasks[task][index, draw]

    def __getitems__(self, keys: list[Any]) -> list[Any]:
        """The items of a batch, which its task may read together."""
        (task, *more) = dict.fromkeys(task for task, _, _ in keys)
        together = None if more else getattr(self.tasks[task], "__getitems__", None)
        return [self[key] for key in keys] if together is None else together([tuple(key[1:]) for key in keys])


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
