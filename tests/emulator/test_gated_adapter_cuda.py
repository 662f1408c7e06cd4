"""What the site's CUDA kernels cost, counted by the emulator, and that forward and backward drop the same values."""

from unittest import mock

import pytest
import torch

from petx.reference import philox_uniform
from tests.cases.gated_adapter import BART_TAIL, DROPOUT_SEED, site
from tests.checks import outputs_and_grads, wrong
from tests.emulator.contracts import NARROW, Cost, counted, hold, hold_conflicts, tiles
from tests.operations import test_gated_adapter as of_users

# Whole tiles and ragged ones; several blocks, several tiles of every width, two splits of tokens.
SITES = [
    site("whole", batch=(1, 128), d=128, r=64, bias=False, x=False),
    site("ragged", batch=(1, 70), d=136, r=72, x=False),
    site("splits", batch=(2, 300), d=64, r=16, bias=False, x=False),
    site("pair", batch=(1, 64), d=128, r=32, heads=2, x=False),
    site("large", batch=(1, 128), d=128, r=64, r_g=64, granularity="large"),
    site("large-ragged", batch=(1, 70), d=136, r=72, r_g=80, granularity="large"),
    site("middleY", batch=(1, 128), d=72, r=16, granularity="middleY", x=False),
    site("middleY-residual", batch=(1, 70), d=128, r=16, granularity="middleY", residual=True),
]
# Six tiles of columns, three a head: a block takes all, or begins in the middle of a head.
SHARED = [
    site("shares", batch=(2, 35), d=300, r=10, r_g=70, heads=2, granularity="large", **BART_TAIL),
    site("shares-small", batch=(2, 35), d=300, r=10, heads=2, granularity="small", mask=True, **BART_TAIL),
]


def sizes(case):
    n = case.shapes["h"][0] * case.shapes["h"][1]
    d, r = case.shapes["h"][2], case.shapes["down_weight"][0]
    r_g = case.shapes["gate_down_weight"][0] if "gate_down_weight" in case.shapes else 0
    return n, d, r, r_g, case.options.get("heads", 1), "up_bias" in case.shapes


def cost_of_a_look(cost, case, up):
    """S and G of every value: the up products, h, the biases, a gate vector, a residual. What belongs to columns is
    read by each thread that has them, in 16 bits two or four rows of a tile; on the plain units biases by each row."""
    n, d, r, r_g, heads, bias = sizes(case)
    of_columns = tiles(n) * d * (64 * 64 // up[1] // 2 if cost.size == 2 else 64)
    biases = (of_columns if cost.size == 2 else n * d) * bias
    for _ in range(heads):
        cost.product(n, d // heads, r // heads, tile=up)
    cost.reads(n * d, biases)
    if r_g:
        cost.product(n, d, r_g, tile=up)
        cost.reads(biases)
    cost.reads(of_columns * (case.options.get("granularity") == "middleY"))


def cost_forward(case, size, tile=(64, 64), up=(64, 64)):
    n, d, r, r_g, heads, bias = sizes(case)
    cost = Cost(size)
    for rank in (r, *([r_g] if r_g else [])):
        cost.product(n, rank, d, tile=tile)  # down: z and its gelu are written
        cost.reads(n * rank * bias)
        cost.writes(2 * n * rank)
    cost_of_a_look(cost, case, up)
    cost.reads(n * d * case.options.get("residual", False))
    cost.writes(n * d)
    return cost, 2  # down and up


def cost_backward(case, size, tile=(64, 64), up=(64, 64), splits=None):
    n, d, r, r_g, heads, bias = sizes(case)
    x, middle_y = "x" in case.shapes, case.options.get("granularity") == "middleY"
    cost = Cost(size)
    for rank in (r, r_g):
        cost.reads(n * rank)  # gelu of z and, later, its slope
        cost.writes(n * rank)
    cost_of_a_look(cost, case, up)
    cost.reads(n * d)  # dout
    begun = x and (case.options.get("residual", False) or not r_g)
    cost.writes(n * d, n * d * bool(r_g), n * d * begun)  # dS, the gate's, dx
    if middle_y:
        cost.writes(-(-n // 64) * d, size=4)  # a block's sum
    for _ in range(heads):
        cost.product(n, r // heads, d // heads, tile=tile)
    cost.reads(n * r)
    cost.writes(n * r)
    cost.product(n, d, r, tile=up)
    cost.reads(n * d)
    cost.writes(n * d)  # dh
    if r_g:
        cost.product(n, r_g, d, tile=tile)
        cost.reads(n * r_g)
        cost.writes(n * r_g)
        cost.product(n, d, r_g, tile=up)
        cost.reads(n * d * begun)
        cost.writes(n * d)  # dx, or dx again
    products = [(d // heads, r // heads, heads), (r, d, 1), *([(d, r_g, 1), (r_g, d, 1)] if r_g else [])]
    widths = [d, r, *([r_g, d] if r_g else [])] if bias else []
    finished = [(-(-n // 64), d)] if middle_y else []
    columns = [(width, 1, 0) for width in widths]
    cost.token_sums(n, products, columns, finished, tile, splits)
    return cost, 4 + 2  # gelu, dS, dz and what reaches h and x; the sums over tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", SITES, ids=str)
@NARROW
def test_cost(case, dtype, emulator):
    """Each value asked for and written as often as the tiling says, and no more; no bank conflicts."""
    tensors = case.inputs(dtype)
    with counted(emulator) as found:
        out = case.run(tensors)
    hold(found[0], *cost_forward(case, dtype.itemsize))
    hold_conflicts(emulator)
    with counted(emulator) as found:
        out.backward(torch.ones_like(out))
    hold(found[0], *cost_backward(case, dtype.itemsize))
    hold_conflicts(emulator)


@pytest.mark.parametrize("granularity", ["none", "large", "middleX", "middleY", "small"])
def test_launches_do_not_depend_on_the_shape(granularity, emulator):
    counts = set()
    for batch, d, r in (((1, 1), 8, 2), ((3, 50), 72, 16), ((2, 40), 37, 5)):
        case = site("launches", batch=batch, d=d, r=r, granularity=granularity)
        emulator.library.simt_reset_counters()
        outputs_and_grads(case.run, case.inputs(torch.float32))
        counts.add(emulator.counters().launches)
    assert len(counts) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", SHARED, ids=str)
def test_shares_of_columns_change_no_bit(case, dtype, emulator, monkeypatch):
    tensors, results = case.inputs(dtype), []
    for shares in ("", "1", "4"):
        monkeypatch.setenv("PETX_CUDA_SHARES", shares)
        results.append(outputs_and_grads(case.run, tensors))
    assert not wrong(results[0], case, tensors)
    for name, value in results[0].items():
        assert value is None or all(torch.equal(other[name], value) for other in results[1:]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.9])
def test_dropout_mask(dropout, dtype, emulator):
    """The mask is the reference's, and the gradient passes where the value did, by the same factor."""
    case = site("mask", batch=(2, 35), d=67, r=8, x=False, dropout=dropout)
    tensors = case.inputs(dtype)
    open_tensors = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
    open_case = site("open", batch=(2, 35), d=67, r=8, x=False)
    dropped, whole = case.run(tensors), open_case.run(open_tensors)
    keep = (philox_uniform(DROPOUT_SEED, dropped.numel()) >= int(dropout * 2**24)).reshape(dropped.shape)
    assert torch.equal(dropped != 0, keep & (whole != 0)) and keep.double().mean() == pytest.approx(
        1 - dropout, abs=0.05
    )
    torch.testing.assert_close(dropped[keep], whole[keep] / (1 - dropout), rtol=4 * torch.finfo(dtype).eps, atol=0)
    # The up bias' gradient is the column's sum of kept gradients; of ones, that of the mask.
    dropped.backward(torch.ones_like(dropped))
    expected = (keep / (1 - dropout)).sum((0, 1))
    torch.testing.assert_close(tensors["up_bias"].grad.double(), expected.double(), rtol=0.02, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_heads_do_not_touch_each_other(dtype, emulator):
    """Ranks of a head that fill no pack, beside a head whose values are infinite: not even times zero do they meet."""
    case = site("heads", batch=(1, 5), d=32, r=24, heads=2, x=False)
    tensors = case.inputs(dtype, requires_grad=False)
    whole = case.run(tensors)
    tensors["down_bias"][12:] = torch.inf
    assert torch.equal(case.run(tensors)[..., :16], whole[..., :16])


def test_a_gradient_may_begin_anywhere(emulator):
    """Where sixteen bytes may not be moved at once, though those of all others may; and so may a float32 stream."""
    case = site("gradient", batch=(1, 5), granularity="large", **BART_TAIL)
    stream = site("stream", batch=(1, 5), granularity="large", stream=True, **BART_TAIL)
    buffer = emulator.buffer
    for one, odd in ((case, "dout"), (stream, "dout"), (stream, "skip"), (stream, "norm_weight")):

        def shifted(name, *arguments, odd=odd, **options):
            emulator.offset = int(name == odd)
            try:
                return buffer(name, *arguments, **options)
            finally:
                emulator.offset = 0

        tensors = one.inputs(torch.bfloat16)
        with mock.patch.object(emulator, "buffer", shifted):
            assert not wrong(outputs_and_grads(one.run, tensors), one, tensors)


def test_a_norm_takes_no_product(emulator):
    """What its sums need again waits in memory."""
    found = []
    for tail in ({}, BART_TAIL):
        case = site("norm", batch=(1, 5), granularity="large", **tail)
        emulator.library.simt_reset_counters()
        outputs_and_grads(case.run, case.inputs(torch.bfloat16))
        found.append(emulator.counters().matrix_products)
    assert found[0] == found[1] > 0


@pytest.mark.parametrize("granularity", ["none", "large"])
def test_gelu_is_of_z_as_it_is_stored(granularity, emulator):
    of_users.test_gelu_is_of_z_as_it_is_stored(granularity, "cpu")


@pytest.mark.parametrize("granularity", ["none", "middleX"])
def test_a_float32_stream_is_not_rounded(granularity, emulator):
    for norm in (None, "layer"):
        of_users.test_a_float32_stream_is_not_rounded(granularity, norm, "cpu")
