"""What the site's CUDA kernels cost, counted by the emulator."""

import pytest
import torch

from tests.cases.gated_adapter import site


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bytes_and_products(dtype, emulator):
    """The forward's cost by formula: each value asked for and written as often as the tiling says, and no more."""
    n, d, r = 128, 128, 64  # two blocks of rows, two tiles of columns, one of the rank
    case = site("cost", batch=(1, n), d=d, r=r, bias=False, x=False)
    tensors = case.inputs(dtype, requires_grad=False)
    case.run(tensors)
    counters, size, blocks = emulator.counters(), tensors["h"].element_size(), n // 64
    # Down: h and the weight, then z for its gelu; up, for each tile of columns: gelu(z) and the weight's rows, then h.
    read = n * d + blocks * r * d + n * r + 2 * n * r + blocks * d * r + n * d
    assert counters.launches == 1
    assert counters.global_read == read * size
    assert counters.global_written == (2 * n * r + n * d) * size
    per_tile = 8 * 4  # warps of 16 rows by 32 columns, in products of 16 by 8
    chunks = blocks * (d // 64 + d // 64 * r // 64)
    assert counters.matrix_products == (0 if dtype == torch.float32 else chunks * 4 * per_tile)
    assert counters.bank_conflicts == 0
