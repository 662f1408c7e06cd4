"""What the CUDA kernels of `mode_update` and `mode_cores` cost, counted by the emulator: each value asked for and
written as often as the tiling says, and no more."""

import pytest
import torch

from tests.cases.mode_cores import cores
from tests.cases.mode_update import modes
from tests.checks import outputs, outputs_and_grads, weights_of

TILE = 64
WARP_PRODUCTS = 8 * 4 * 4  # a chunk of the depth in a tile: 8 warps of 16 x 32 results, in products 16 x 8 x 16
MULTIPROCESSORS = 132
by_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def tiles(size):
    return -(-size // TILE)


class Cost:
    """Sums of a formula: values read and written in storage type, in compute type, and chunks of matrix products."""

    def __init__(self):
        self.read = self.written = self.wide_read = self.wide_written = self.chunks = 0

    def product(self, rows, columns, depth):
        """[rows, columns] by tiles, each of which reads its vectors once."""
        self.read += rows * depth * tiles(columns) + columns * depth * tiles(rows)
        self.chunks += tiles(rows) * tiles(columns) * tiles(depth)

    def moved(self, read, written):
        self.read += read
        self.written += written

    def sum_over_tokens(self, n, pairs, m, width):
        """[m, width] = the sum of `pairs` products over n tokens, which fit into one split."""
        for _ in range(pairs):
            self.product(m, width, n)
        self.wide_written += pairs * m * width + m * width
        self.wide_read += pairs * m * width


def assert_costs(counters, cost, launches, dtype):
    size = dtype.itemsize
    assert counters.launches == launches
    assert counters.global_read == cost.read * size + cost.wide_read * 4
    assert counters.global_written == cost.written * size + cost.wide_written * 4
    assert counters.matrix_products == (cost.chunks * WARP_PRODUCTS if dtype == torch.bfloat16 else 0)
    assert counters.bank_conflicts == 0


def tiles_of_a_share(blocks, works, again):
    """The fewest shares that leave the busiest multiprocessor least to do (launch.cuh)."""
    cost = {}
    for shares in range(1, min(works, 2 * MULTIPROCESSORS) + 1):
        busiest, each = -(-blocks * shares // MULTIPROCESSORS), -(-works // shares)
        cost.setdefault(each, (busiest + 1) * (4 * (each + again) + 1))
    return min(cost, key=cost.get)


def forward_cost(n, d_in, d_out, rank, count, dropout):
    """Whole tiles; a block of rows is shared by as many blocks as fill the card, which recompute h."""
    cost, works = Cost(), count * tiles(d_out)
    of_tile = tiles(rank) + 3
    each = tiles_of_a_share(tiles(n), works, -(-tiles(d_in) * tiles(rank) // of_tile) + 1)
    shares = -(-works // each)
    for begin in range(0, works, each):
        end = min(begin + each, works)
        cost.product(n, rank, d_in)
        cost.moved(0, n * rank)
        for k in range(begin // tiles(d_out), -(-end // tiles(d_out))):
            if dropout:
                cost.moved(n * rank, n * rank)
            cost.product(n, rank, rank)
            cost.moved(0, n * rank)
            for _ in range(max(begin, k * tiles(d_out)), min(end, (k + 1) * tiles(d_out))):
                cost.product(n, TILE, rank)
                cost.moved(n * TILE, n * TILE)  # base, y
    return cost, dropout * shares  # and the seed, once a thread


def backward_cost(n, d_in, d_out, rank, count, dropout):
    """dx's columns are shared by blocks, which recompute dh."""
    cost, shares = Cost(), -(-tiles(d_in) // tiles_of_a_share(tiles(n), tiles(d_in), count * tiles(rank)))
    for _ in range(count):
        cost.product(n, rank, d_out)  # dg
        cost.moved(0, n * rank)
        if dropout:
            cost.moved(n * rank, n * rank)
        cost.product(n, rank, rank)  # g
        cost.moved(0, n * rank)
        for _ in range(shares):
            cost.product(n, rank, rank)  # dh's part
        cost.sum_over_tokens(n, 1, rank, rank)
    cost.moved(0, shares * n * rank)  # dh
    cost.product(n, d_in, rank)
    cost.moved(0, n * d_in)
    cost.sum_over_tokens(n, count, d_out, rank)
    cost.sum_over_tokens(n, 1, rank, d_in)
    return cost, dropout * (count + shares)


@by_dtype
@pytest.mark.parametrize(
    ("n", "d_in", "d_out", "rank", "count", "options"),
    [
        (128, 128, 128, 64, 3, {}),
        (64, 64, 192, 128, 2, {}),
        (128, 64, 128, 64, 3, dict(dropout=0.1)),
        (64, 128, 64, 64, 4, dict(dropout=0.5, shared_mask=True)),
    ],
    ids=["plain", "wide-rank", "dropout", "shared"],
)
def test_mode_update(n, d_in, d_out, rank, count, options, dtype, emulator):
    case = modes("cost", batch=(n,), d_in=d_in, d_out=d_out, rank=rank, count=count, **options)
    tensors = case.inputs(dtype)
    results = outputs(case.run(tensors))
    cost, seeds = forward_cost(n, d_in, d_out, rank, count, bool(options))
    seed_bytes = 8 * 256 * tiles(n)
    counters = emulator.counters()
    counters.global_read -= seeds * seed_bytes
    assert_costs(counters, cost, 1, dtype)

    emulator.library.simt_reset_counters()
    factors = [tensors[name] for name in ("x", "u", "v", "cores")]
    torch.autograd.grad(results, factors, weights_of(results))
    cost, seeds = backward_cost(n, d_in, d_out, rank, count, bool(options))
    counters = emulator.counters()
    counters.global_read -= seeds * seed_bytes
    assert_costs(counters, cost, 4, dtype)


def test_diagonal_cores_take_one_launch_more(emulator):
    case = modes("cost", batch=(64,), core="diagonal", dropout=0.1)
    tensors = case.inputs(torch.float32)
    results = outputs(case.run(tensors))
    assert emulator.counters().launches == 1
    torch.autograd.grad(results, list(tensors.values()), weights_of(results))
    assert emulator.counters().launches == 1 + 5


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
    cost.moved(0, 3 * n * rank + n * rank + n * width)
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
    cost.chunks = 0
    assert_costs(counters, cost, 1, dtype)

    emulator.library.simt_reset_counters()
    torch.autograd.grad(results, list(tensors.values()), weights_of(results))
    cost, blocks = Cost(), tiles(slices)
    cost.product(slices, rank, n)
    cost.moved((1 + gated) * slices * rank, 0)  # for the gate's slopes
    cost.wide_written += slices * rank
    cost.product(n, rank, slices)
    cost.moved(gated * slices * rank, 0)
    cost.wide_written += 2 * n * rank + gated * (blocks + 1)
    cost.wide_read += n * rank + gated * blocks
    cost.chunks = 0
    assert_costs(emulator.counters(), cost, 2, dtype)
