"""The benchmarks at tiny shapes: peers compute the same, times, memory and refusals are what they say."""

import itertools
import time
import types

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from petx import _rooms
from petx.bench import case as bench_case
from petx.bench import layers, peers, run, table, timing
from petx.bench.case import PETX, PRODUCTS, Unavailable, plain, select
from petx.bench.ops import cp_reconstruct, expert_mixture, gated_adapter, mode_cores, mode_update, query_transformation
from tests.cases import TABLES
from tests.checks import Recorder

TINY = {
    "gated_adapter": [
        gated_adapter.case(112, torch.float64, tail, d=16, r=8, r_g=4, tail=tail) for tail in ("none", "bart", "t5")
    ],
    "mode_cores": [
        mode_cores.case(5, torch.float64, core, rank=4, diagonal=core == "diagonal") for core in ("full", "diagonal")
    ],
    "mode_update": [
        mode_update.case(9, torch.float64, "alone", d_in=12, d_out=10, rank=4, modes=2, dropout=0.0),
        mode_update.case(9, torch.float64, "with", d_in=12, d_out=10, rank=4, projections=True, dropout=0.0),
        mode_update.case(9, torch.float64, "diagonal", d_in=12, d_out=10, rank=4, diagonal=True, dropout=0.0),
    ],
    "cp_reconstruct": [
        cp_reconstruct.case(3, torch.float64, "soft", d_in=12, d_out=10, rank=4),
        cp_reconstruct.case(3, torch.float64, "full", d_in=12, d_out=10, rank=4, gate="none", full=True),
    ],
    "expert_mixture": [
        expert_mixture.case(9, torch.float64, gate, d=12, experts=3, rank=4, gate=gate, length=3)
        for gate in ("uniform", "token", "sample")
    ],
    "query_transformation": [query_transformation.case(9, torch.float64, "small", d=12)],
}
ALL = [case for cases in TINY.values() for case in cases]


def without_dropout(case):
    options = case.options | {"dropout": 0.0} if "dropout" in case.options else case.options
    return bench_case.BenchCase(**vars(case) | {"options": options})


def outputs_and_grads(arm, case, problem, activations):
    forward, leaves = arm.build(case, problem)
    leaves = leaves + [t for t in activations.values() if t.requires_grad]
    outputs = forward(activations)
    draw = torch.Generator().manual_seed(1)
    gradients = [torch.randn(o.shape, generator=draw, dtype=o.dtype) for o in outputs]
    return [*outputs, *torch.autograd.grad(outputs, leaves, gradients)]


@pytest.mark.parametrize("case", ALL, ids=str)
def test_products_alone_are_the_work(case):
    """Multiplications and additions of the forward and the backward, but for those that make narrow cores."""
    (arm,) = [arm for arm in case.arms if arm.name == PRODUCTS]
    problem = case.make(case, "cpu")
    if not case.work["fwd"][0]:
        with pytest.raises(Unavailable, match="no product"):
            arm.build(case, problem)
        return
    forward, leaves = arm.build(case, problem)
    counted = []
    with FlopCounterMode(display=False) as counter:
        outputs = forward(problem.fresh())
        counted.append(counter.get_total_flops())
        torch.autograd.grad(outputs, leaves, [torch.ones_like(y) for y in outputs], allow_unused=True)
        counted.append(counter.get_total_flops() - counted[0])
    full = case.sizes.get("core") == "full"  # whose small products are no part of the case's least work
    assert counted[0] == case.work["fwd"][0] or full and counted[0] > case.work["fwd"][0]
    assert counted[1] == case.work["bwd"][0] or full and counted[1] > case.work["bwd"][0]


@pytest.mark.parametrize("case", ALL, ids=str)
def test_peers_compute_the_same(case):
    case = without_dropout(case)
    problem = case.make(case, "cpu")
    activations = problem.fresh()
    by_name = {arm.name: arm for arm in case.arms}
    wanted = outputs_and_grads(by_name[PETX], case, problem, activations)
    for name in (peers.LITERAL, peers.BEST):
        with Recorder() as seen:
            got = outputs_and_grads(by_name[name], case, problem, activations)
        assert not seen.calls
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)  # of float64: sums in another order


def test_the_stacked_form_is_the_same():
    for case in TINY["cp_reconstruct"]:
        problem = case.make(case, "cpu")
        activations = problem.fresh()
        forms = [plain("one", cp_reconstruct.eager), plain("all", cp_reconstruct.stacked)]
        one, all_ = (outputs_and_grads(arm, case, problem, activations) for arm in forms)
        for a, b in zip(one, all_, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)  # of float64: sums in another order


def test_patience():
    with pytest.raises(Unavailable, match="not done within 0 s"), timing.patience(0.05):
        time.sleep(5)
    with timing.patience(0.05):
        pass
    time.sleep(0.1)  # nothing comes later


def test_lora_is_lora():
    """PEFT's arm has the frozen projection, and trains A and B of the case's rank for every mode."""
    case = TINY["mode_update"][1]
    problem = case.make(case, "cpu")
    forward, leaves = next(arm for arm in case.arms if arm.name == peers.LORA).build(case, problem)
    assert sorted(tuple(p.shape) for p in leaves) == [(4, 12)] * 3 + [(10, 4)] * 3
    x = problem.fresh()["x"]
    a, b = leaves[:2]
    wanted = torch.nn.functional.linear(x, problem.frozen["weight_0"], problem.frozen["bias_0"]) + x @ a.T @ b.T
    torch.testing.assert_close(forward({"x": x})[0], wanted)


def test_every_operation_is_measured():
    """Each operation of the tests' table, in both sets and every dtype that a kernel has to serve."""
    for device in ("cpu", "cuda"):
        measured = {case.operation for case in table.cases(device, quick=True)}
        assert set(_rooms.modules("petx.bench.ops")) == set(TABLES)
        assert set(TABLES) <= measured and {"encoder_layer", "qformer_layer", "training_step"} <= measured
        dtypes = {(case.operation, case.dtype) for case in table.cases(device)}
        assert {(n, d) for n in TABLES for d in (torch.float32, torch.bfloat16, torch.float16)} <= dtypes
    names = [str(case) for case in table.cases("cuda")]
    assert len(names) == len(set(names))
    for case in table.cases("cpu"):
        if case.operation in TABLES:
            flops, moved = case.work["fwd"]
            assert moved > 0 and (flops > 0) == (case.operation != "query_transformation")  # which has no product


def test_scaled_tokens():
    by_name = {case.label: case for case in table.cases("cpu")}
    assert by_name["gated_adapter/bart"].sizes["N"] == 2800 and by_name["mode_update/image-kv"].sizes["N"] == 1028
    by_name = {case.label: case for case in table.cases("cuda")}
    assert by_name["gated_adapter/bart"].sizes["N"] == 28_000 and by_name["mode_update/image-kv"].sizes["N"] == 4112


@pytest.mark.slow
def test_measure(monkeypatch):
    monkeypatch.setattr(timing, "ROTATED_BYTES", {"cpu": 1 << 16})
    case = TINY["gated_adapter"][1]
    case = select([case], peers=[peers.BEST, peers.LORA, peers.GRAPHS])[0]
    # Time enough for a slow machine; what ends the rounds is in the next test, by a clock that is no machine's.
    results = timing.measure(case, "cpu", seconds=60, least_rounds=4, most_rounds=4)
    assert list(results) == [PETX, peers.BEST, peers.GRAPHS, peers.LORA]
    assert results[peers.GRAPHS] == {"unavailable": "CUDA graphs need a GPU"}
    for name in (PETX, peers.BEST):
        times = results[name]
        assert times["fwd"]["rounds"] == 4
        assert 0 < times["fwd"]["low"] <= times["fwd"]["median"] <= times["fwd"]["high"]
        assert times["fwd"]["median"] < times["fwd+bwd"]["median"]
    # By the sizes: petx keeps narrow tensors beside the output, eager full-width ones.
    assert results[PETX]["kept_bytes"] < results[peers.BEST]["kept_bytes"] <= results[peers.BEST]["peak_bytes"]


@pytest.mark.parametrize(
    ("seconds", "rounds"),
    [(40, 6), (10, 4), (5, 3), (0, 3), (1000, 7)],
    ids=["until over", "at least", "fewer if four times as long", "but three", "at most"],
)
def test_what_ends_the_rounds(monkeypatch, seconds, rounds):
    """Every look at the clock takes a second: a round of two arms is seven, with one to see whether it is the last."""
    ticks = itertools.count()
    monkeypatch.setattr(timing, "time", types.SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    monkeypatch.setattr(timing, "ROTATED_BYTES", {"cpu": 1 << 12})
    case = select([TINY["gated_adapter"][0]], peers=[peers.BEST])[0]
    results = timing.measure(case, "cpu", seconds=seconds, least_rounds=4, most_rounds=7)
    for name in (PETX, peers.BEST):
        for direction, ticked in {"fwd": 1.0, "bwd": 1.0, "fwd+bwd": 2.0}.items():
            measured = {key: value for key, value in results[name][direction].items() if key != "ratio"}
            assert measured == {"median": ticked, "low": ticked, "high": ticked, "rounds": rounds}


def test_visits_gather_their_rounds(monkeypatch):
    monkeypatch.setattr(timing, "ROTATED_BYTES", {"cpu": 1 << 12})
    case, rounds = select([TINY["expert_mixture"][0]], peers=[peers.BEST])[0], {}
    first = timing.measure(case, "cpu", seconds=0.0, rounds=rounds, least_rounds=3)
    second = timing.measure(case, "cpu", seconds=0.0, rounds=rounds, least_rounds=4)
    for arm in (PETX, peers.BEST):
        assert first[arm]["fwd"]["rounds"] == 3 and second[arm]["fwd"]["rounds"] == len(rounds[arm]["fwd"]) == 6
        assert second[arm]["fwd"]["low"] == min(seconds for seconds, _ in rounds[arm]["fwd"])
    ratios = [a / b for (a, _), (b, _) in zip(rounds[peers.BEST]["bwd"], rounds[PETX]["bwd"], strict=True)]
    assert second[peers.BEST]["bwd"]["ratio"] == timing.summary(ratios)


def test_memory_counts_what_is_allocated():
    def twice(t):
        wide = t["x"].repeat(4)  # 32 KB, released before the result is made
        total = wide.sum()
        del wide
        return (t["x"] * total,)

    def make(case, device):
        return bench_case.Problem({}, {}, lambda: {"x": torch.ones(1024, dtype=torch.float64)})

    case = bench_case.BenchCase("toy", "toy", torch.float64, {}, make, (plain(PETX, twice),), whole=True)
    result = timing.measure(case, "cpu", seconds=0.0)[PETX]
    assert 8192 <= result["kept_bytes"] < 9000 and 32_768 <= result["peak_bytes"] < 34_000


def test_a_layer_in_a_dtype_without_products_is_left_out():
    rates = {"gemm_flops_per_second": {"float32": 1e11, "bfloat16": 1e9}}
    (single, *_), (half, *_) = layers.cases(torch.float32), layers.cases(torch.bfloat16)
    assert run.too_slow(single, rates) is None
    assert run.too_slow(half, rates).startswith("torch multiplies bfloat16 at 1.0 GFLOP/s here")
    assert run.too_slow(ALL[0], rates) is None
    slow = {"gemm_flops_per_second": {"float32": 1e11, "float64": 1e9}}
    assert [case.frozen_products for case in TINY["mode_update"]] == [False, True, False]
    assert run.too_slow(TINY["mode_update"][0], slow) is None and run.too_slow(TINY["mode_update"][1], slow)


LAYERS = {
    "bart": lambda: layers.vlpet_layer("bart", torch.float32, batch=2, length=5, **SMALL),
    "t5": lambda: layers.vlpet_layer("t5", torch.float32, batch=2, length=5, d_model=96),
    "vlpet-step": lambda: layers.vlpet_step(torch.float32, batch=2, length=5, target=3, layers=1, **SMALL),
    "petal": lambda: layers.petal_layer(torch.float32, batch=2, text=4, **QFORMER),
    "petal-step": lambda: layers.petal_step(torch.float32, batch=2, text=4, layers=2, **QFORMER),
}
SMALL = dict(d_model=96, encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=50)
QFORMER = dict(hidden_size=48, intermediate_size=32, encoder_hidden_size=24, vocab_size=100)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, monkeypatch):
    """Every arm runs; petx and the literal form train equally many parameters, the frozen model none."""
    monkeypatch.setattr(timing, "ROTATED_BYTES", {"cpu": 1 << 12})
    case = LAYERS[name]()
    counts, problem = {}, case.make(case, "cpu")
    for arm in case.arms:
        forward, leaves = arm.build(case, problem)
        counts[arm.name] = sum(p.numel() for p in leaves)
        with Recorder() as seen:
            forward(problem.fresh())
        assert bool(seen.calls) == (arm.name == PETX), (arm.name, seen.calls)
    assert counts[PETX] == counts[peers.LITERAL] > 0 and counts[peers.LORA] > 0 and counts[layers.FROZEN] == 0
    results = timing.measure(case, "cpu", seconds=0.0)
    assert not [arm for arm in results.values() if "unavailable" in arm]
    assert results[PETX]["step" if case.whole else "fwd+bwd"]["median"] > 0


def test_literal_site_is_the_site():
    """In the tuned layer, eager and kernel give one result if dropout is off."""
    case = layers.vlpet_layer("bart", torch.float32, batch=2, length=5, dropout=0.0, **SMALL)
    problem = case.make(case, "cpu")
    hidden = problem.fresh()
    outputs = {}
    for arm in case.arms[:2]:
        forward, _ = arm.build(case, problem)
        outputs[arm.name] = forward(hidden)[0]
    torch.testing.assert_close(outputs[PETX], outputs[peers.LITERAL], rtol=1e-4, atol=1e-4)
