"""Grids of calls that no test can hold: their launches are made, and no block of them runs."""

import ctypes

import pytest
import torch

from tests.cases.cp_reconstruct import reconstruct
from tests.cases.expert_mixture import mixture
from tests.cases.gated_adapter import BART_TAIL, site
from tests.cases.mode_update import modes
from tests.cases.query_transformation import transformation
from tests.checks import outputs
from tests.emulator import Emulator
from tests.emulator.operations import in_place_of_cpu_kernels, mode_cores

ROWS = 64 * 65_535 + 1  # one block more than the second axis of a grid takes
MANY = {
    "gated_adapter": [
        site("large", batch=(1, ROWS), d=2, r=16, r_g=16, granularity="large", **BART_TAIL),
        site("samples", batch=(ROWS, 1), d=2, r=1, granularity="small", **BART_TAIL),
    ],
    "expert_mixture": [
        mixture("equal", batch=(1, ROWS), d=2, experts=2, rank=1),
        mixture("samples", batch=(ROWS, 1), d=2, experts=2, rank=1, gate="sample"),
    ],
    "mode_update": [modes("many", batch=(ROWS,), d_in=2, d_out=2, rank=2, count=2, dropout=0.1)],
    "cp_reconstruct": [reconstruct("many", modules=1, d_out=ROWS, d_in=1, rank=1, gate="soft")],
    "query_transformation": [
        transformation("rows", batch=(1, 2**31 // 64), d=2),
        transformation("samples", batch=(ROWS, 1), d=2),
        transformation("columns", batch=(2,), d=2**23),
    ],
}


class Untouched(Emulator):
    """Of a library's launches no block runs: tensors are shapes, since nobody reads or writes their memory."""

    ADDRESS = 4096

    def __init__(self, emulator, device="cpu"):
        super().__init__(emulator.library._name)
        self.device = device

    def buffer(self, name, tensor, **_):
        return None if tensor is None else self.ADDRESS

    def result(self, name, shape, dtype):
        return torch.empty(shape, dtype=dtype, device=self.device), self.ADDRESS

    def call(self, function, *arguments):
        self.library.simt_set_sample(ctypes.c_int64(-1))
        try:
            super().call(function, *arguments)
        finally:
            self.library.simt_set_sample(ctypes.c_int64(0))


@pytest.mark.parametrize("operation", MANY)
def test_rows_lie_on_the_first_axis(operation, emulated_kernels):
    """Where a GPU takes 2^31 - 1 blocks; on the second it takes 65,535."""
    emulated_kernels.library.simt_reset_counters()
    with in_place_of_cpu_kernels(Untouched(emulated_kernels)):
        for case in MANY[operation]:
            # What torch.empty gives has no memory before it is touched.
            tensors = {name: torch.empty(shape).requires_grad_() for name, shape in case.shapes.items()}
            results = outputs(case.run(tensors))
            torch.autograd.grad(results, list(tensors.values()), [torch.empty_like(y) for y in results])
    assert emulated_kernels.counters().launches >= 5


@pytest.mark.parametrize(("rank", "count"), [(2049, 2), (2, ROWS)], ids=["slices", "modes"])
def test_modes_and_slices_lie_on_the_first_axis(rank, count, emulated_kernels):
    assert max(rank * rank, count) >= ROWS
    untouched = Untouched(emulated_kernels, device="meta")
    core, vectors, threshold = (torch.empty(shape, device="meta") for shape in ((rank,) * 3, (count, rank), (1,)))
    cores = mode_cores.forward(untouched, core, vectors, threshold, 1, 1.0)
    grads = mode_cores.backward(untouched, cores, core, vectors, threshold, 7, 0, 1, 1.0)
    assert cores.shape == (count, rank, rank) and grads[0].shape == core.shape
