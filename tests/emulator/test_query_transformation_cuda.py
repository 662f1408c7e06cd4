"""What the CUDA kernels of `query_transformation` cost, counted by the emulator, and that their sums are in float32."""

import pytest
import torch

from petx import functional
from tests.cases.query_transformation import transformation
from tests.checks import outputs, weights_of

ROWS_AT_ONCE, LEAST = 32, 64  # of a block's threads, of a split


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cost(dtype, emulator):
    """Every tensor once; the vectors once a thread."""
    rows, d = 140, 200
    case = transformation("cost", batch=(2, 70), d=d, apart=3)
    tensors = case.inputs(dtype)
    splits, size, values = -(-rows // LEAST), dtype.itemsize, rows * d
    vector = splits * ROWS_AT_ONCE * d
    results = outputs(case.run(tensors))
    counters = emulator.counters()
    assert (counters.launches, counters.bank_conflicts) == (1, 0)
    assert (counters.global_read, counters.global_written) == (size * (2 * values + 2 * vector), size * values)
    for wanted, launches, read, sums in ((["x"], 1, values, 0), (["shift"], 2, values, 1), (None, 2, 2 * values, 2)):
        tensors = {name: t.detach().requires_grad_(wanted is None or name in wanted) for name, t in tensors.items()}
        results = outputs(case.run(tensors))
        emulator.library.simt_reset_counters()
        torch.autograd.grad(results, [tensors[name] for name in wanted or tensors], weights_of(results))
        counters, dx = emulator.counters(), wanted is None or "x" in wanted
        assert (counters.launches, counters.bank_conflicts) == (launches, 0)
        assert counters.global_read == size * (read + vector * dx) + 4 * sums * splits * d
        assert counters.global_written == size * (values * dx + sums * d) + 4 * sums * splits * d


@pytest.mark.parametrize("rows", [64, 2100], ids=["one split", "more splits than a block has warps"])
def test_sums_are_in_float32(rows, emulator):
    """Of whole numbers in bfloat16 the exact sum, which bfloat16 could not hold."""
    draw = torch.Generator().manual_seed(0)
    x, dout = (torch.randint(1, 12, (rows, 24), generator=draw).bfloat16() for _ in range(2))
    scale, shift = (torch.zeros(24, requires_grad=True) for _ in range(2))
    functional.query_transformation(x, scale, shift, factor=1.0).backward(dout)
    assert torch.equal(scale.grad, (x.double() * dout.double()).sum(0).float())
    assert torch.equal(shift.grad, dout.double().sum(0).float())
