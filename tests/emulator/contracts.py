"""What a kernel may cost, as tests: bytes, matrix products and launches against a formula, and no bank conflicts.

Bytes are those that the threads ask for, whatever the caches answer: a value that two blocks read counts twice. They
say whether the tiling is what the formula says. ``distinct`` bytes are those of the 32-byte sectors that a launch
touches at all, which memory itself has to give even where everything else is cached: DRAM's traffic lies between the
two. What sectors the lanes of a warp ask for together is ``sectors``.
"""

import contextlib
import os
from dataclasses import dataclass
from unittest import mock

import torch

from tests.checks import outputs_and_grads, wrong

TILE = 64  # of FmaTile and MmaTile, in every direction
NARROW = mock.patch.dict(os.environ, PETX_CUDA_WIDE="1")  # a decorator: whatever the shape, such tiles
SLACK = 1.05


def tiles(size, of=TILE):
    return -(-size // of)


@dataclass
class Cost:
    """Sums of a formula. ``size`` is of the storage type in bytes, ``compute`` of what is summed in."""

    size: int
    compute: int = 4
    read: int = 0
    written: int = 0
    products: int = 0

    def reads(self, *counts, size=None):
        self.read += sum(counts) * (size or self.size)

    def writes(self, *counts, size=None):
        self.written += sum(counts) * (size or self.size)

    def product(self, rows, columns, *depths, tile=(TILE, TILE)):
        """[rows, columns] by tiles, each of which reads its vectors once; ``depths`` where the depth is cut."""
        down, across = tiles(rows, tile[0]), tiles(columns, tile[1])
        for depth in depths:
            self.reads(rows * depth * across, columns * depth * down)
            # The depth in steps of 16, products of 16 x 8.
            self.products += tile[0] * tile[1] // 128 * down * across * -(-depth // 16) * (self.size == 2)

    def token_sums(self, rows, products, columns, finished, tile=(TILE, TILE), splits=None):
        """Sums over tokens by cuda/common/token_sums.cuh: ``products`` (m, n, groups), ``columns`` (width, read a token
        in storage type, in compute type), ``finished`` (parts, count) beside these. Gradients are stored in storage
        type, as the parameters are. Of a ``tile`` that is no square the longer of m and n are the rows."""
        splits = splits or min(-(-rows // 512), 16)
        length = -(-rows // splits)
        lengths = [min(length, rows - first) for first in range(0, rows, length)]
        finished = list(finished)
        for m, n, groups in products:
            for _ in range(groups):
                self.product(max(m, n), min(m, n), *lengths, tile=tile)
            finished.append((len(lengths), groups * m * n))
            self.writes(len(lengths) * groups * m * n, size=self.compute)
        for width, narrow, wide in columns:
            self.reads(rows * width * narrow)
            self.reads(rows * width * wide, size=self.compute)
            self.writes(len(lengths) * width, size=self.compute)
            finished.append((len(lengths), width))
        for parts, count in finished:
            self.reads(parts * count, size=self.compute)
            self.writes(count)


@contextlib.contextmanager
def counted(emulator):
    """Counts what the calls inside do, bank conflicts of plain accesses included; yields a list that then holds the
    counters."""
    emulator.library.simt_set_watching(1)
    emulator.library.simt_reset_counters()
    found = []
    try:
        yield found
    finally:
        emulator.library.simt_set_watching(0)
        found.append(emulator.counters())


def hold(counters, cost, launches):
    """Fails where a call cost more than its formula."""
    assert counters.launches == launches, f"{counters.launches} launches, not {launches}"
    for name, asked, formula in (
        ("read", counters.global_read, cost.read),
        ("written", counters.global_written, cost.written),
    ):
        assert formula <= asked <= SLACK * formula, f"{asked} bytes {name}, {asked / formula:.3f} of the formula's"
    said = f"{counters.matrix_products} matrix products, not {cost.products}"
    assert counters.matrix_products == cost.products, said
    # No more than what is asked for can be touched.
    assert counters.distinct_read <= counters.sectors_read and counters.distinct_written <= counters.sectors_written


def hold_conflicts(emulator, *allowed):
    """Fails where shared memory has bank conflicts, but for those at the places ``allowed`` ("file:line")."""
    places = [line for line in emulator.conflicts().splitlines() if not line.startswith(allowed)]
    assert not places, f"bank conflicts: {'; '.join(places)}"


def hold_right_in_bfloat16(case, emulator):
    """A result within the rule, the same bits in two orders of the blocks, and no bank conflict."""
    tensors, results = case.inputs(torch.bfloat16), []
    for emulator.order in ("ascending", "random-1"):
        results.append(outputs_and_grads(case.run, tensors))
    assert not wrong(results[0], case, tensors)
    for name, value in results[0].items():
        assert value is None or torch.equal(value, results[1][name]), name
    assert emulator.counters().bank_conflicts == 0
