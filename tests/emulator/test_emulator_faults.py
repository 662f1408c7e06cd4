"""The emulator finds what it claims to: tiny kernels with one mistake each (the real kernels: emulator/mutants.py)."""

import ctypes
import re

import pytest
import torch

from tests.emulator import HERE, ORDERS, Emulator, KernelFault, kept

# Mistake, by its number in faults.cu -> a piece of the report that must name it.
REVERSE = {
    "missing_barrier": "race: reads 4 bytes of shared memory|which nobody has written",
    "missing_reuse_barrier": "race: (reads|writes) 4 bytes of shared memory",
    "divergent_barrier": "reaches a block barrier while .* threads wait at another one, emulator/faults.cu",
    "missed_barrier": "deadlock in(.|\n)*63 threads .* wait at the block barrier(.|\n)*threads .40; warp 1. have left",
    "shared_out_of_bounds": "is out of bounds: 4 bytes of shared memory at 256 of 256",
    "shared_misaligned": "is misaligned: 4 bytes of shared memory",
    "shared_never_written": "which nobody has written",
    "global_out_of_bounds": "writes global memory outside every buffer, 0 bytes past the end of out|race: writes out",
    "global_before_begin": "writes global memory outside every buffer, 4 bytes before out|race: writes out",
    "writes_input": "writes an input: in at byte",
    "global_race": "race: writes out at byte .* which thread",
    "reads_other_block": "race: (reads|writes) out at byte .* which block . touched at emulator/faults.cu",
    "divergent_shuffle": "comes to a shuffle while lanes of its warp wait at emulator/faults.cu",
    "lonely_shuffle": "deadlock in block(.|\n)*8 threads .* wait for the rest of their warp",
    "reads_unwritten": "reads out at byte .* which nobody has written",
    "global_misaligned": "is misaligned: in at byte 2",
}
WARPS = {
    "no_group_barrier": "race: reads 4 bytes of shared memory .* at emulator/faults.cu|which nobody has written",
    "group_of_others": "race: reads 4 bytes of shared memory .* at emulator/faults.cu|which nobody has written",
    "group_sizes_differ": "comes to barrier 1 for (64|96) threads while others .* (96|64), emulator/faults.cu",
    "group_incomplete": "deadlock in block(.|\n)*64 threads .* wait at barrier 1 for 96 threads, emulator/faults.cu",
    "group_of_lanes": "with 16 lanes of warp . only|comes to barrier . for (32|64) threads while",
    "group_unnamed": "names barrier 16; there are 1 to 15",
    "no_warp_barrier": "race: (reads|writes) 4 bytes of shared memory",
    "warp_barrier_of_half": "race: (reads|writes) 4 bytes of shared memory",
    "mask_without_self": "whose mask does not name it",
    "masks_differ": "with another mask than its warp",
    "shuffle_from_absent": "shuffles from lane (0|16), which does not take part",
    "divergent_vote": "comes to a vote while lanes of its warp wait at emulator/faults.cu",
}
COPY = {
    "no_wait": "an asynchronous copy is still under way",
    "one_group_too_few": "an asynchronous copy is still under way",
    "no_commit": "an asynchronous copy is still under way",
    "no_barrier": "race: reads 16 bytes of shared memory|nobody has written|an asynchronous copy is still under way",
    "overwritten_in_flight": "an asynchronous copy is still under way",
}
MATRICES = ["swapped_halves", "not_transposed", "swapped_rows"]


@pytest.fixture(scope="module")
def tiny():
    return Emulator(kept("faults", [HERE / "faults.cu"]))


def call(emulator, function, results, inputs, fault, unwritten=True):
    addresses = [emulator.buffer(name, tensor) for name, tensor in inputs.items()]
    shape, dtype = results
    out = torch.zeros(shape, dtype=dtype)
    address = emulator.buffer("out", out, writable=True, unwritten=unwritten)
    emulator.call(function, *map(ctypes.c_void_p, [*addresses, address]), ctypes.c_int(fault))
    return out


def reverse(emulator, fault):
    unwritten = fault == 1 + list(REVERSE).index("reads_unwritten")
    return call(emulator, "run_reverse", ((128,), torch.float32), {"in": torch.arange(128.0)}, fault, unwritten)


def warps(emulator, fault):
    return call(emulator, "run_warps", ((128,), torch.float32), {"in": torch.arange(128.0)}, fault)


def copy(emulator, fault):
    return call(emulator, "run_copy", ((64, 4), torch.float32), {"in": torch.arange(256.0)}, fault)


def matrices(emulator, fault):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(16, n, generator=generator).bfloat16() for n in (16, 8))
    out = call(emulator, "run_matrices", ((16, 8), torch.float32), {"a": a, "b": b}, fault)
    return out, a.float() @ b.float()


@pytest.mark.parametrize("order", ORDERS)
def test_right_kernels_pass(tiny, order):
    tiny.order = order
    turned = torch.arange(128.0).reshape(2, 64).flip(1).reshape(64, 2)
    assert torch.equal(reverse(tiny, 0), turned.sum(1, keepdim=True).expand(64, 2).reshape(-1))
    first = torch.arange(4) // 2 * 64 + (1 - torch.arange(4) % 2) * 32  # of the warp beside each
    expected = first[:, None] + torch.tensor([17] * 16 + [1] * 16)
    assert torch.equal(warps(tiny, 0), expected.float().reshape(-1))
    packs = torch.arange(256.0).reshape(2, 32, 4)
    assert torch.equal(copy(tiny, 0), packs.roll(-1, 1).reshape(64, 4))
    torch.testing.assert_close(*matrices(tiny, 0), rtol=1e-6, atol=1e-6)


MISTAKES = [(reverse, n, text) for n, text in enumerate(REVERSE.values(), 1)]
MISTAKES += [(warps, n, text) for n, text in enumerate(WARPS.values(), 1)]
MISTAKES += [(copy, n, text) for n, text in enumerate(COPY.values(), 1)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("kernel", "number", "says"), MISTAKES, ids=[*REVERSE, *WARPS, *COPY])
def test_each_mistake_is_named(tiny, kernel, number, says, order):
    """In every order: the detector needs no lucky schedule."""
    tiny.order = order
    with pytest.raises(KernelFault) as caught:
        kernel(tiny, number)
    assert re.search(says, str(caught.value)), caught.value


@pytest.mark.parametrize("number", range(1, 1 + len(MATRICES)), ids=MATRICES)
def test_wrong_fragments_give_wrong_results(tiny, number):
    out, expected = matrices(tiny, number)
    assert (out - expected).abs().max() > 0.1


def test_counters(tiny):
    tiny.library.simt_reset_counters()
    copy(tiny, 0)
    matrices(tiny, 0)
    counters = tiny.counters()
    assert (counters.launches, counters.matrix_products) == (2, 1)
    assert counters.global_read == 64 * 16 + 2 * 32 * 16
    assert counters.global_written == 64 * 16 + 16 * 8 * 4
    assert counters.bank_conflicts == 4  # rows of 32 bytes: of eight packs two start in each group of banks
