"""What the CUDA kernels of `mode_update` and `mode_cores` cost, counted by the emulator: each value asked for and
written as often as the tiling says, and no more."""

import ctypes

import pytest
import torch

from tests.cases.mode_cores import cores
from tests.cases.mode_update import modes
from tests.checks import outputs, outputs_and_grads, weights_of
from tests.emulator.operations import addresses, integers, reals
from tests.emulator.test_token_sums import philox
from tests.operations import test_mode_update as of_users

TILE = 64
STEP_PRODUCTS = 8 * 4  # 16 of the depth in a tile: 8 warps of 16 x 32 results, in products 16 x 8 x 16
MULTIPROCESSORS = 132
by_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def tiles(size):
    return -(-size // TILE)


class Cost:
    """Sums of a formula: values read and written in storage type, in compute type, and steps of a product's depth."""

    def __init__(self):
        self.read = self.written = self.wide_read = self.wide_written = self.steps = 0

    def product(self, rows, columns, depth):
        """[rows, columns] by tiles, each of which reads its vectors once."""
        self.read += rows * depth * tiles(columns) + columns * depth * tiles(rows)
        self.steps += tiles(rows) * tiles(columns) * -(-depth // 16)

    def moved(self, read, written):
        self.read += read
        self.written += written

    def sum_over_tokens(self, n, pairs, m, width):
        """[m, width] = the sum of `pairs` products over n tokens, which fit into one split."""
        for _ in range(pairs):
            self.product(m, width, n)
        self.wide_written += pairs * m * width
        self.written += m * width
        self.wide_read += pairs * m * width


def assert_costs(counters, cost, launches, dtype):
    size = dtype.itemsize
    assert counters.launches == launches
    assert counters.global_read == cost.read * size + cost.wide_read * 4
    assert counters.global_written == cost.written * size + cost.wide_written * 4
    assert counters.matrix_products == (cost.steps * STEP_PRODUCTS if dtype == torch.bfloat16 else 0)
    assert counters.bank_conflicts == 0


def busiest(blocks, works):
    """What the busiest multiprocessor takes: of two blocks a sixth more than of one (launch.cuh)."""
    pairs, single = divmod(-(-blocks // MULTIPROCESSORS), 2)
    return (7 * pairs + 6 * single) * (4 * works + 1)


def tiles_of_a_share(blocks, works, again):
    """The fewest shares that leave the busiest multiprocessor least to do."""
    cost = {}
    for shares in range(1, min(works, 2 * MULTIPROCESSORS) + 1):
        each = -(-works // shares)
        cost.setdefault(each, busiest(blocks * -(-works // each), each + again))
    return min(cost, key=cost.get)


def tile_cycles(blocks, depth, besides):
    """What the busiest multiprocessor takes for tiles of 64 x 64 (common/wide_plan.h)."""
    of_one = -(-blocks // MULTIPROCESSORS)
    instructions = tiles(depth) * 115 + 260
    issue = (7 * (of_one // 2) + 6 * (of_one % 2)) * instructions * 200 // (43 * 6)
    return max(issue, of_one * (2 * TILE * depth * 2 + besides) // 24)


def depth_splits(n, rank, depth, times, launch):
    """Into how many parts the depth of a product down is cut, at most eight (mode_update/plan.h)."""
    cost, groups, results = {}, tiles(n) * tiles(rank) * times, TILE * TILE
    for splits in range(1, min(8, tiles(depth)) + 1):
        each = -(-tiles(depth) // splits)
        if -(-tiles(depth) // each) != splits:
            continue
        cost[splits] = tile_cycles(groups * splits, each * TILE, (4 if splits > 1 else 2) * results)
        if splits > 1:
            cost[splits] += launch + 4 * n * rank * times * splits // (24 * MULTIPROCESSORS)
    return min(cost, key=cost.get)


def forward_cost(n, d_in, d_out, rank, count, dropout, dtype):
    """x U^T, in parts if there are few rows; each projection's g, by each share of its columns; the results."""
    cost, splits = Cost(), depth_splits(n, rank, d_in, 1, 0)
    cost.product(n, rank, d_in)
    cost.wide_written += (splits > 1) * splits * n * rank
    cost.moved(0, n * rank)  # h, at once or by the first that adds it up
    works = tiles(d_out)
    shares = -(-works // tiles_of_a_share(tiles(n) * count, works, (24 + 16 * splits) // 24))
    staged = dtype == torch.bfloat16 and rank <= TILE
    for _ in range(count):
        for _ in range(shares):
            kept = splits > 1 or dropout  # h, which is multiplied as it lies where it is neither
            if splits > 1:
                cost.wide_read += splits * n * rank
            elif staged or kept:
                cost.moved(n * rank, 0)
            cost.product(n, rank, rank)
            if staged:
                cost.moved(-n * rank * tiles(rank), 0)  # no operand is brought
            else:
                cost.moved(0, kept * n * rank + n * rank)  # what is multiplied, and g
        cost.product(n, d_out, rank)
        if staged:
            cost.moved(-n * rank * tiles(d_out), 0)
        cost.moved(n * d_out, n * d_out)  # base, y
    return cost, 2, dropout * (splits * tiles(rank) + count * shares)  # and the seed, once a thread


def backward_cost(n, d_in, d_out, rank, count, dropout, dtype):
    """dx's columns are shared by blocks, which add up dh."""
    staged = dtype == torch.bfloat16 and rank <= TILE  # cores multiply what never comes back from memory
    cost, shares = Cost(), -(-tiles(d_in) // tiles_of_a_share(tiles(n), tiles(d_in), 1))
    splits = depth_splits(n, rank, d_out, count, 3500)
    for _ in range(count):
        cost.product(n, rank, d_out)
        if splits > 1:  # dg's parts
            cost.wide_written += splits * n * rank
            cost.wide_read += splits * n * rank
        cost.moved(0, n * rank)  # dg
        cost.product(n, rank, rank)
        cost.moved(-staged * n * rank, 0)
        cost.moved(0, n * rank)  # what it adds to dh
        if dropout:
            cost.moved(n * rank - staged * n * rank, n * rank)
        cost.product(n, rank, rank)  # g
        cost.moved(0, n * rank)
        cost.sum_over_tokens(n, 1, rank, rank)
    if count > 1:
        cost.moved(shares * count * n * rank, shares * n * rank)  # dh
    cost.product(n, d_in, rank)
    cost.moved(0, n * d_in)
    cost.sum_over_tokens(n, count, d_out, rank)
    cost.sum_over_tokens(n, 1, rank, d_in)
    seeds = 2 * count + shares + (splits > 1) * count * splits * tiles(rank)
    return cost, 4 + (splits > 1), dropout * seeds


@by_dtype
@pytest.mark.parametrize(
    ("n", "d_in", "d_out", "rank", "count", "options"),
    [
        (128, 128, 128, 64, 3, {}),
        (64, 64, 192, 128, 2, {}),
        (128, 64, 128, 64, 3, dict(dropout=0.1)),
        (64, 128, 64, 64, 4, dict(dropout=0.5, shared_mask=True)),
        (64, 256, 640, 128, 1, dict(dropout=0.1)),
        # Two tiles of each projection's 67 a share, but for the last.
        (64, 64, 4288, 64, 4, {}),
    ],
    ids=["plain", "wide-rank", "dropout", "shared", "deep", "odd-shares"],
)
def test_mode_update(n, d_in, d_out, rank, count, options, dtype, emulator):
    case = modes("cost", batch=(n,), d_in=d_in, d_out=d_out, rank=rank, count=count, **options)
    tensors = case.inputs(dtype)
    results = outputs(case.run(tensors))
    cost, launches, seeds = forward_cost(n, d_in, d_out, rank, count, bool(options), dtype)
    seed_bytes = 8 * 256 * tiles(n)
    counters = emulator.counters()
    counters.global_read -= seeds * seed_bytes
    assert_costs(counters, cost, launches, dtype)

    emulator.library.simt_reset_counters()
    factors = [tensors[name] for name in ("x", "u", "v", "cores")]
    torch.autograd.grad(results, factors, weights_of(results))
    cost, launches, seeds = backward_cost(n, d_in, d_out, rank, count, bool(options), dtype)
    counters = emulator.counters()
    counters.global_read -= seeds * seed_bytes
    assert_costs(counters, cost, launches, dtype)


def test_diagonal_cores_take_no_launch_more(emulator):
    case = modes("cost", batch=(64,), core="diagonal", dropout=0.1)
    tensors = case.inputs(torch.float32)
    results = outputs(case.run(tensors))
    assert emulator.counters().launches == 2
    torch.autograd.grad(results, list(tensors.values()), weights_of(results))
    assert emulator.counters().launches == 2 + 4


def test_nothing_is_made_for_gradients_that_nobody_asks_for(emulator):
    """x's gradient alone: the dy and V, dg by the cores, dx; no launch of sums."""
    n, width, rank = 64, 64, 64
    case = modes("cost", batch=(n,), d_in=width, d_out=width, rank=rank)
    tensors = case.inputs(torch.float32, requires_grad=False)
    tensors["x"].requires_grad_()
    results = outputs(case.run(tensors))
    emulator.library.simt_reset_counters()
    torch.autograd.grad(results, tensors["x"], weights_of(results))
    cost = Cost()
    for _ in range(3):
        cost.product(n, rank, width)
        cost.product(n, rank, rank)
    cost.product(n, width, rank)
    cost.moved(3 * n * rank, 3 * n * rank + 3 * n * rank + n * rank + n * width)
    assert_costs(emulator.counters(), cost, 2, torch.float32)
    # One result alone: its dy alone is read.
    results = outputs(case.run(tensors))
    emulator.library.simt_reset_counters()
    torch.autograd.grad(results[1], tensors["x"], weights_of(results)[1])
    cost = Cost()
    for columns, depth in ((rank, width), (rank, rank), (width, rank)):
        cost.product(n, columns, depth)
    cost.moved(0, 2 * n * rank + n * width)
    assert_costs(emulator.counters(), cost, 2, torch.float32)


def test_gradients_from_some_results(emulator):
    """What no gradient comes to counts as zeros: with one result alone, and without the one in the middle."""
    case = modes("some", batch=(7,), count=3, dropout=0.1)
    tensors = case.inputs(torch.float32)
    factors = [tensors[name] for name in ("x", "u", "v", "cores")]
    for chosen in ((1,), (0, 2)):
        results = outputs(case.run(tensors))
        weights = [w if k in chosen else torch.zeros_like(w) for k, w in enumerate(weights_of(results))]
        expected = torch.autograd.grad(results, factors, weights, retain_graph=True)
        got = torch.autograd.grad([results[k] for k in chosen], factors, [weights[k] for k in chosen])
        for value, by_zeros in zip(got, expected, strict=True):
            torch.testing.assert_close(value, by_zeros)
        assert expected[3].reshape(3, -1).any(1).tolist() == [k in chosen for k in range(3)]


@pytest.mark.parametrize("projected", [False, True])
def test_hidden_gradients_of_projections_are_summed_in_float32(projected, emulator):
    of_users.test_hidden_gradients_of_projections_are_summed_in_float32(projected, "cpu")


@pytest.mark.parametrize("k", [0, 2])
@pytest.mark.parametrize("block", [0, 5, 2**24, 2**26, 2**28 + 1])
def test_masks_at_large_rows(block, k, emulated_kernels):
    """No row's position is kept in 32 bits."""
    rows, rank, seed = 2**35, 4, 0x1234567890ABCDEF
    numbers = integers(torch.float32, rows, 1, 1, rank, 3, False, False), reals(0.5)
    tensors = addresses(*[None] * 4, emulated_kernels.buffer("seed", torch.tensor([seed])), None)
    factors, address = emulated_kernels.result("factors", (4,), torch.float32)
    where = ctypes.c_int64(block), ctypes.c_int64(k), ctypes.c_void_p(address)
    emulated_kernels.call("mode_update_factors", *numbers, tensors, *where)
    first = (k * rows + 64 * block) * rank
    assert factors.tolist() == [2.0 * (philox(seed, first + j) >= 2**23) for j in range(4)]


@pytest.mark.parametrize("shares", ["1", "2"])
def test_shares_of_columns_change_no_bit(shares, emulator, monkeypatch):
    """Of nine tiles and of dx's four: one block makes all, or a block begins in the middle of a projection."""
    case = modes("shares", batch=(2, 35), d_in=200, d_out=136, rank=72, dropout=0.1)
    for dtype in (torch.float32, torch.bfloat16):
        tensors, results = case.inputs(dtype), []
        for wanted in ("", shares):
            monkeypatch.setenv("PETX_CUDA_SHARES", wanted)
            results.append(outputs_and_grads(case.run, tensors))
        for name, value in results[0].items():
            assert value is None or torch.equal(results[1][name], value), name


@by_dtype
@pytest.mark.parametrize("options", [{}, dict(gate="soft")], ids=["none", "soft"])
def test_mode_cores(options, dtype, emulator):
    """The core once forward, and once for each of the two products backward."""
    n, rank = 20, 16
    case, slices = cores("cost", n, rank, **options), rank * rank
    tensors, gated = case.inputs(dtype), bool(options)
    results = outputs(case.run(tensors))
    cost = Cost()
    cost.product(n, slices, rank)
    cost.moved(gated * slices * rank, n * slices)  # a threshold for each of the core's values
    counters = emulator.counters()
    assert_costs(counters, cost, 1, dtype)

    emulator.library.simt_reset_counters()
    torch.autograd.grad(results, list(tensors.values()), weights_of(results))
    cost, blocks = Cost(), tiles(slices)
    cost.product(slices, rank, n)
    cost.moved(2 * gated * slices * rank, 0)  # for the gate's slopes
    cost.moved(0, slices * rank)
    for _ in range(0, slices, 256):  # splits
        cost.product(n, rank, 256)
        cost.wide_written += n * rank
        cost.wide_read += n * rank
    cost.moved(gated * slices * rank, 0)
    cost.moved(0, n * rank + gated)
    cost.wide_written += gated * blocks
    cost.wide_read += gated * blocks
    assert_costs(emulator.counters(), cost, 2, dtype)
