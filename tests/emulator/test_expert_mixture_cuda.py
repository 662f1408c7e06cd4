"""The mixture's CUDA kernels: what they cost, counted by the emulator, and the path that borrows its products."""

import pytest
import torch

from tests.cases.expert_mixture import CASES, FEW, SAMPLE, WIDE, mixture
from tests.checks import exact, outputs_and_grads, relative, wrong
from tests.emulator import ORDERS
from tests.operations.test_not_finite import INF, NAN, same_places

DTYPES = [torch.float32, torch.bfloat16]
PER_CHUNK = 4 * 8 * 4  # matrix products of a tile 64 deep: four steps of eight warps of 16 by 32, each 16 by 8

N, D, K, R = 128, 128, 4, 16  # two blocks of rows, two tiles of columns, one of the rank
S, BLOCKS, TILES = K * R, N // 64, D // 64
LANES = 8  # threads of a row where no product is


def run(emulator, dtype, backward=False, bias=False, **options):
    """Counters of one call, and the sizes of a stored and a computed value."""
    case = mixture("cost", batch=(2, N // 2), d=D, experts=K, rank=R, bias=bias, **options)
    tensors = case.inputs(dtype, requires_grad=backward)
    out = case.run(tensors)
    if backward:
        emulator.library.simt_reset_counters()
        torch.autograd.grad(out, list(tensors.values()), torch.ones_like(out))
    counters = emulator.counters()
    assert counters.bank_conflicts == 0
    return counters, tensors["x"].element_size(), 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cost_with_equal_gates(dtype, emulator):
    counters, size, _ = run(emulator, dtype)
    down = N * D + BLOCKS * S * D  # x and the weight
    up = TILES * N * S + BLOCKS * D * S + N * D  # hidden values for each tile of columns, the weight, x
    assert counters.launches == 2  # the projections
    assert counters.global_read == (down + up) * size
    assert counters.global_written == (2 * N * S + N * D) * size
    chunks = BLOCKS * (D // 64 + TILES * S // 64)
    assert counters.matrix_products == (chunks * PER_CHUNK if size == 2 else 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cost_with_token_gates(dtype, emulator):
    """The gate's columns are the second tile of the down projection; a row's lanes read its gates once."""
    counters, size, wide = run(emulator, dtype, gate="token")
    down = 2 * N * D + BLOCKS * (S + K) * D
    softmax = N * (LANES * (2 * K + 1) + K)  # by all of a row's
    up = TILES * N * S + BLOCKS * D * S + N * D
    assert counters.launches == 3  # the projections and a pass over the rows
    assert counters.global_read == (down + N * S + up) * size + (softmax + N * LANES * K) * wide
    assert counters.global_written == (2 * N * S + N * D) * size + 2 * N * K * wide
    chunks = BLOCKS * (2 * D // 64 + TILES * S // 64)
    assert counters.matrix_products == (chunks * PER_CHUNK if size == 2 else 0)


def test_few_rows_split_the_depth_of_wide_tiles(emulator, monkeypatch):
    """Of 128 x 32, two splits of 64: each leaves u's and the logits' parts, which the pass over the rows adds up."""
    monkeypatch.setenv("PETX_CUDA_WIDE", "2")
    counters, size, wide = run(emulator, torch.bfloat16, gate="token")
    parts, images = 2 * N * (S + K), TILES * 64 * 64  # of the up weight, for strips
    assert counters.launches == 3
    assert counters.global_written == (parts + 2 * N * K) * wide + (images + 2 * N * S + N * D) * size


def test_gate_rides_in_the_last_tile(emulator):
    """Where the last tile of the down projection has room, a gate costs no product at all."""
    shape = dict(batch=(1, 64), d=64, experts=3, rank=16, bias=False)
    products = []
    for options in ({}, {"gate": "token"}):
        emulator.library.simt_reset_counters()
        case = mixture("ride", **shape, **options)
        case.run(case.inputs(torch.bfloat16, requires_grad=False))
        products.append(emulator.counters().matrix_products)
    assert products[0] == products[1] == PER_CHUNK + 3 * PER_CHUNK // 4  # 64 deep, then 48


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cost_of_the_backward(dtype, emulator):
    counters, size, wide = run(emulator, dtype, backward=True, gate="token")
    q = N * D + BLOCKS * S * D
    between = 2 * N * S  # u and q
    between_gates = N * K * (LANES + 1 + 1)  # each lane a gate, then its own gates and their gradients
    column_runs = N * D // (16 // size)  # of sixteen bytes
    dx = TILES * N * S + BLOCKS * S * D + N * D + N * D * K + column_runs * K  # with the gate's part, K values of two
    sums = 2 * TILES * 2 * N * 64 + TILES * (N * K + N * 64)  # two weights, and the gate's
    grads = 2 * S * D + K * D
    assert counters.launches == 5  # q, rows, dx, products over tokens, splits added up
    assert counters.global_read == (q + between + dx + sums) * size + (between_gates + grads) * wide
    assert counters.global_written == (3 * N * S + N * K + N * D + grads) * size + (N * K + grads) * wide
    chunks = BLOCKS * (D // 64 + TILES * S // 64) + 3 * TILES * N // 64
    assert counters.matrix_products == (chunks * PER_CHUNK if size == 2 else 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("path", ["fused", "hybrid"])
def test_cost_of_the_backward_with_equal_gates(path, dtype, emulator, monkeypatch):
    """No pass over the rows: the products of q make du and the hidden values. Hybrid: torch's products are counted with
    what they write, and no sum is left to be added up, since there is no bias."""
    monkeypatch.setenv("PETX_EXPERT_MIXTURE", path)
    counters, size, wide = run(emulator, dtype, backward=True)
    grads = 2 * S * D
    if path == "hybrid":
        assert counters.launches == 4 + 2  # q, du, dx and what it is added to, and two weights
        assert counters.global_read == (2 * N * S + 2 * N * D) * size
        assert counters.global_written == (3 * N * S + 2 * N * D + grads) * size
        return
    q = N * D + BLOCKS * S * D
    dx = TILES * N * S + BLOCKS * S * D + N * D
    sums = 2 * TILES * 2 * N * 64
    assert counters.launches == 4  # q, dx, products over tokens, splits added up
    assert counters.global_read == (q + N * S + dx + sums) * size + grads * wide
    assert counters.global_written == (2 * N * S + N * D + grads) * size + grads * wide


LAUNCHES = {
    ("fused", "sample"): (4, 6),
    ("fused", "uniform"): (2, 4),
    ("hybrid", "sample"): (6, 10),
    ("hybrid", "uniform"): (4, 7),
}


@pytest.mark.parametrize(("path", "gate"), LAUNCHES)
def test_launches_do_not_grow(path, gate, emulator, monkeypatch):
    """A sample's gate: down, samples, rows, up; in the backward besides the two of the sums over tokens. Hybrid: two
    products more; in the backward five, and the pass after dx instead of q. Equal gates: no samples, and rows in the
    hybrid path alone, whose passes make the sums of columns, too."""
    monkeypatch.setenv("PETX_EXPERT_MIXTURE", path)
    for batch in ((1, 5), (3, 70)):
        case = mixture("count", batch=batch, gate=gate, pool=gate == "sample")
        counts = []
        for backward in (False, True):
            emulator.library.simt_reset_counters()
            tensors = case.inputs(torch.float32, requires_grad=backward)
            out = case.run(tensors)
            if backward:
                emulator.library.simt_reset_counters()
                torch.autograd.grad(out.sum(), list(tensors.values()))
            counts.append(emulator.counters().launches)
        assert tuple(counts) == LAUNCHES[path, gate]


@pytest.mark.parametrize("bias", [False, True])
def test_cost_between_the_products(bias, emulator, monkeypatch):
    """Hybrid: u in, hidden values out; then y and x in, y out. The two products are counted with what they write. A
    thread has the down bias of its columns, for all its rows, and no u is written with it."""
    monkeypatch.setenv("PETX_EXPERT_MIXTURE", "hybrid")
    counters, size, _ = run(emulator, torch.bfloat16, bias=bias)
    biases = BLOCKS * 256 * 8 + BLOCKS * K * D if bias else 0
    assert counters.launches == 2 + 2 and counters.matrix_products == 0
    assert counters.global_read == (N * S + 2 * N * D + biases) * size
    assert counters.global_written == (N * S + N * D + N * S + N * D) * size


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if case.name in FEW] + WIDE, ids=str)
def test_hybrid_matches_reference(case, dtype, emulator, monkeypatch):
    monkeypatch.setenv("PETX_EXPERT_MIXTURE", "hybrid")
    tensors, results = case.inputs(dtype), []
    for order in ORDERS:
        emulator.order = order
        results.append(outputs_and_grads(case.run, tensors))
    assert not wrong(results[0], case, tensors)
    for name, value in results[0].items():
        assert value is None or all(torch.equal(other[name], value) for other in results[1:]), name


@pytest.mark.parametrize("path", ["fused", "hybrid"])
@pytest.mark.parametrize("gate", [{}, {"gate": "token"}, SAMPLE], ids=["uniform", "token", "sample"])
def test_shares_of_columns_change_no_bit(gate, path, emulator, monkeypatch):
    """However many tiles a block takes one after another: one, all three, or two and one."""
    monkeypatch.setenv("PETX_EXPERT_MIXTURE", path)
    case = mixture("shares", batch=(2, 35), d=150, experts=3, rank=47, activation="gelu", scope=True, **gate)
    for dtype in DTYPES:
        tensors, results = case.inputs(dtype), []
        for shares in ("", "1", "2"):
            monkeypatch.setenv("PETX_CUDA_SHARES", shares)
            results.append(outputs_and_grads(case.run, tensors))
        assert not wrong(results[0], case, tensors)
        for name, value in results[0].items():
            assert value is None or all(torch.equal(other[name], value) for other in results[1:]), name


@pytest.mark.parametrize("gate", ["uniform", "token", "sample"])
def test_hybrid_gradients_of_every_subset(gate, emulator, monkeypatch):
    monkeypatch.setenv("PETX_EXPERT_MIXTURE", "hybrid")
    case = mixture("subset", gate=gate, scope=True, activation="gelu")
    full = outputs_and_grads(case.run, case.inputs(torch.bfloat16))
    for name in case.shapes:
        for wanted in ({name}, set(case.shapes) - {name}):
            tensors = case.inputs(torch.bfloat16, requires_grad=False)
            for each in wanted:
                tensors[each].requires_grad_()
            for other, value in outputs_and_grads(case.run, tensors).items():
                assert torch.equal(value, full[other]), (name, other)


@pytest.mark.parametrize(
    ("rows", "stacked", "hybrid"),
    [(4096, 384, True), (4095, 384, False), (10**6, 64, False), (8192, 192, True), (8191, 192, False)],
)
def test_path_is_chosen_by_shape(rows, stacked, hybrid, emulated_kernels, monkeypatch):
    from tests.emulator.operations.expert_mixture import path

    monkeypatch.delenv("PETX_EXPERT_MIXTURE", raising=False)
    assert path(emulated_kernels, rows, stacked) == ("hybrid" if hybrid else "fused")
    for wanted in ("hybrid", "fused"):
        monkeypatch.setenv("PETX_EXPERT_MIXTURE", wanted)
        assert path(emulated_kernels, rows, stacked) == wanted


def test_ties(emulator):
    """Logits 1, 2, 1, 1, 1: top 3 keeps the second and, of the equal ones, the first two."""
    case = mixture("tie", experts=5, rank=3, gate="token", top_k=3)
    tensors = case.inputs(torch.float32)
    with torch.no_grad():
        tensors["gate_weight"].zero_(), tensors["gate_bias"].copy_(torch.tensor([1.0, 2.0, 1.0, 1.0, 1.0]))
    got = outputs_and_grads(case.run, tensors)
    assert not wrong(got, case, tensors)
    assert got["down_weight"].reshape(5, -1).any(1).tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("gate", ["token", "sample"])
def test_large_logits(gate, emulator):
    """Logits in the hundreds, whose exponentials have no place in a float. The logits' own rounding is what is left."""
    case = mixture("large", gate=gate, experts=4)
    for sign in (1, -1):
        tensors = case.inputs(torch.float32)
        with torch.no_grad():
            tensors["gate_bias"].copy_(sign * torch.tensor([-400.0, 400.0, 402.0, 401.0]))
        assert relative(case.run(tensors), exact(case, tensors)["out"]) < 1e-4


@pytest.mark.parametrize("gate", ["token", "sample"])
def test_not_finite_exactly_where_the_reference_is_not(gate, emulator):
    emulator.order = "ascending"
    for where, bad in (("x", NAN), ("x", INF), ("gate_bias", NAN), ("up_bias", NAN), ("down_bias", -INF)):
        for top_k in (None, 2):
            same_places(where, bad, gate=gate, top_k=top_k, activation="relu")
