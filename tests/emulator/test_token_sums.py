"""What sizes that no test can hold, and tolerances of 16-bit results, would hide: asked for in other ways."""

import ctypes

import pytest
import torch

from petx import functional
from petx.reference import philox_uniform
from tests.cases.gated_adapter import DROPOUT_SEED
from tests.cases.mode_cores import cores
from tests.checks import outputs_and_grads, wrong

MASK = 2**32 - 1


def philox(seed, element):
    """The 24 bits of one element (Salmon et al., SC'11), in Python's integers."""
    counter, keys = element // 4, [seed & MASK, seed >> 32]
    c = [counter & MASK, counter >> 32, 0, 0]
    for _ in range(7):
        first, second = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [second >> 32 ^ c[1] ^ keys[0], second & MASK, first >> 32 ^ c[3] ^ keys[1], first & MASK]
        keys = [(keys[0] + 0x9E3779B9) & MASK, (keys[1] + 0xBB67AE85) & MASK]
    return c[element % 4] >> 8


@pytest.mark.parametrize(
    "first", [0, 5, 2**31 - 3, 2**32 - 4, 2**32, 2**32 + 7, 2**34 - 2, 2**34 + 1, 2**40 + 3], ids=str
)
def test_dropout_at_large_positions(first, emulated_kernels):
    """No position is kept in 32 bits."""
    factors = (ctypes.c_float * 8)()
    seed = ctypes.c_uint64(DROPOUT_SEED)
    emulated_kernels.library.simt_dropout_factors(ctypes.c_double(0.5), seed, ctypes.c_uint64(first), factors)
    words = [philox(DROPOUT_SEED, first + j) for j in range(8)]
    assert list(factors) == [2.0 * (word >= 2**23) for word in words]
    if first < 100:
        assert philox_uniform(DROPOUT_SEED, first + 8)[first:].tolist() == words


@pytest.mark.parametrize("rows", [1024, 1030])
def test_weight_gradients_are_sums_in_float32(rows, emulator):
    """Of whole numbers in bfloat16 the exact sum, over splits of tokens that are whole and ragged."""
    draw = torch.Generator().manual_seed(0)
    h = torch.randint(8, 12, (1, rows, 8), generator=draw).bfloat16()  # where gelu changes nothing
    dout = torch.randint(1, 4, (1, rows, 8), generator=draw).bfloat16()
    down, up = torch.eye(8), torch.zeros(8, 8, requires_grad=True)
    functional.gated_adapter(h, None, down, None, up, None).backward(dout)
    assert torch.equal(up.grad, dout[0].float().T @ h[0].float())
    assert not torch.equal(up.grad, up.grad.bfloat16().float())  # which bfloat16 could not hold


@pytest.mark.parametrize("rank", [47, 48])
def test_many_parts_are_shared_out(rank, emulator):
    """The threshold's gradient has a part of every 64 of the core's rows, 35 or 36 of them, whose vectors begin at any
    value or at multiples of sixteen bytes: a block's warps share them."""
    case = cores("parts", 3, rank, gate="soft", threshold=rank)
    tensors, results = case.inputs(torch.float32), []
    for emulator.order in ("ascending", "random-1"):
        results.append(outputs_and_grads(case.run, tensors))
    assert not wrong(results[0], case, tensors)
    assert all(torch.equal(results[1][name], value) for name, value in results[0].items())
