"""The benchmarks at tiny shapes: peers compute the same, times, memory and refusals are what they say."""

import json
import time

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from petx import cli, ops
from petx.bench import (
    calls,
    compare,
    layers,
    machine,
    operations,
    peers,
    plots,
    process,
    report,
    run,
    table,
    timing,
)
from petx.bench import case as bench_case
from petx.bench.case import PETX, PRODUCTS, Unavailable, plain, select
from petx.errors import UserError
from tests.cases import TABLES

TINY = {
    "gated_adapter": [
        operations.site(112, torch.float64, tail, d=16, r=8, r_g=4, tail=tail) for tail in ("none", "bart", "t5")
    ],
    "mode_cores": [operations.cores(5, torch.float64, "tiny", rank=4)],
    "mode_update": [
        operations.update(9, torch.float64, "alone", d_in=12, d_out=10, rank=4, modes=2, dropout=0.0),
        operations.update(9, torch.float64, "with", d_in=12, d_out=10, rank=4, projections=True, dropout=0.0),
    ],
    "cp_reconstruct": [
        operations.reconstruct(3, torch.float64, "soft", d_in=12, d_out=10, rank=4),
        operations.reconstruct(3, torch.float64, "full", d_in=12, d_out=10, rank=4, gate="none", full=True),
    ],
    "expert_mixture": [
        operations.mixture(9, torch.float64, gate, d=12, experts=3, rank=4, gate=gate) for gate in ("uniform", "token")
    ],
}
ALL = [case for cases in TINY.values() for case in cases]


def without_dropout(case):
    options = case.options | {"dropout": 0.0} if "dropout" in case.options else case.options
    return bench_case.BenchCase(**vars(case) | {"options": options})


class OperatorsOfPetx(TorchDispatchMode):
    """Names of petx's operators that ran, so that an eager arm is known to be one."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "petx":
            self.names.append(function._opname)
        return function(*args, **kwargs or {})


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
        with OperatorsOfPetx() as seen:
            got = outputs_and_grads(by_name[name], case, problem, activations)
        assert not seen.names
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)  # of float64: sums in another order


def test_the_stacked_form_is_the_same():
    for case in TINY["cp_reconstruct"]:
        problem = case.make(case, "cpu")
        activations = problem.fresh()
        forms = [plain("one", peers.reconstruct_eager), plain("all", peers.reconstruct_stacked)]
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
        assert set(TABLES) <= measured and {"encoder_layer", "qformer_layer", "training_step"} <= measured
        dtypes = {(case.operation, case.dtype) for case in table.cases(device)}
        assert {(n, d) for n in TABLES for d in (torch.float32, torch.bfloat16, torch.float16)} <= dtypes
    names = [str(case) for case in table.cases("cuda")]
    assert len(names) == len(set(names))
    assert all(case.work["fwd"][0] > 0 for case in table.cases("cpu") if case.operation in TABLES)


def test_scaled_tokens():
    by_name = {case.label: case for case in table.cases("cpu")}
    assert by_name["gated_adapter/bart"].sizes["N"] == 2800 and by_name["mode_update/image-kv"].sizes["N"] == 1028
    by_name = {case.label: case for case in table.cases("cuda")}
    assert by_name["gated_adapter/bart"].sizes["N"] == 28_000 and by_name["mode_update/image-kv"].sizes["N"] == 4112


def test_measure(monkeypatch):
    monkeypatch.setattr(timing, "ROTATED_BYTES", {"cpu": 1 << 16})
    case = TINY["gated_adapter"][1]
    case = select([case], peers=[peers.BEST, peers.LORA, peers.GRAPHS])[0]
    results = timing.measure(case, "cpu", seconds=0.05, least_rounds=4)
    assert list(results) == [PETX, peers.BEST, peers.GRAPHS, peers.LORA]
    assert results[peers.GRAPHS] == {"unavailable": "CUDA graphs need a GPU"}
    for name in (PETX, peers.BEST):
        times = results[name]
        assert times["fwd"]["rounds"] >= 4
        assert 0 < times["fwd"]["low"] <= times["fwd"]["median"] <= times["fwd"]["high"]
        assert times["fwd"]["median"] < times["fwd+bwd"]["median"]
    # By the sizes: petx keeps narrow tensors beside the output, eager full-width ones.
    assert results[PETX]["kept_bytes"] < results[peers.BEST]["kept_bytes"] <= results[peers.BEST]["peak_bytes"]


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


def toy(name="toy", function=lambda t: (t["x"] * 2,), arms=()):
    def make(case, device):
        return bench_case.Problem({}, {}, lambda: {"x": torch.ones(8, requires_grad=True)})

    return bench_case.BenchCase("toy", name, torch.float32, {"N": 8}, make, (plain(PETX, function), *arms))


def raises(error):
    def function(t):
        raise error

    return function


def test_a_peer_that_fails_is_listed():
    broken = plain("broken", raises(RuntimeError("no such kernel\nand more")))
    result = timing.measure(toy(arms=[broken]), "cpu", seconds=0.0)
    assert result["broken"] == {"unavailable": "RuntimeError: no such kernel"} and "fwd" in result[PETX]


def test_no_memory_skips_the_case():
    said = []
    outcome = run.attempt(toy(function=raises(torch.OutOfMemoryError("CUDA out of memory"))), "cpu", 0.0, said.append)
    assert outcome == {"skipped": "not enough GPU memory"} and "not enough GPU memory" in said[0]


@pytest.fixture
def small(monkeypatch):
    """A set of three quick cases, and constants that cost nothing."""
    monkeypatch.setattr(timing, "ROTATED_BYTES", {"cpu": 1 << 14})
    arms = [plain("best eager", lambda t: (t["x"] + t["x"],))]
    cases = [toy(name, arms=arms) for name in ("one", "two", "three")]
    monkeypatch.setattr(table, "cases", lambda device, quick=False: list(cases))
    monkeypatch.setattr(table, "sweeps", lambda device, quick: [])
    rates = {"copy_bytes_per_second": {"1048576": 1e10}, "gemm_flops_per_second": {"float32": 1e11}}
    monkeypatch.setattr(machine, "constants", lambda device: rates)
    monkeypatch.setattr(process, "import_seconds", lambda rounds: {"torch": 1.0, "petx over torch": 0.1})
    return cases


def run_small(path, **options):
    options = dict(quick=True, seconds=0.0, minutes=1, figures=False, say=lambda text: None) | options
    return run.run("cpu", path, **options)


def test_an_interrupted_run_keeps_what_it_measured(small, tmp_path):
    small[1] = toy("two", function=raises(KeyboardInterrupt()))
    results = run_small(tmp_path / "results.json")
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored == results and stored["interrupted"]
    assert [case["name"] for case in stored["cases"]] == ["one"] and "fwd" in stored["cases"][0]["arms"][PETX]


def test_what_time_does_not_reach_is_listed(small, tmp_path):
    results = run_small(tmp_path / "results.json", minutes=0)
    assert [case["skipped"] for case in results["cases"]] == ["not reached within 0 minutes"] * 3
    assert "not reached within 0 minutes" in report.markdown(results)


@pytest.mark.skipif(ops._C is None, reason="needs the compiled library's operators")
def test_calls_and_their_operators(small, tmp_path):
    measured = calls.overheads("cpu", seconds=0.0)
    layers_ = {"GatedAdapter", "ValueAdapter", "ExpertMixture", "ModeCores", "ModeLinear", "torch's Linear"}
    assert set(measured) == layers_
    assert all(0 < seconds < 1 for times in measured.values() for seconds in times.values())
    results = run_small(tmp_path / "results.json") | {"process": {"call_overheads": measured}}
    assert "| GatedAdapter | " in report.markdown(results)
    assert calls.overheads("meta") == {}


def test_a_layer_in_a_dtype_without_products_is_left_out():
    rates = {"gemm_flops_per_second": {"float32": 1e11, "bfloat16": 1e9}}
    (single, *_), (half, *_) = layers.cases(torch.float32), layers.cases(torch.bfloat16)
    assert run.too_slow(single, rates) is None
    assert run.too_slow(half, rates).startswith("torch multiplies bfloat16 at 1.0 GFLOP/s here")
    assert run.too_slow(ALL[0], rates) is None
    slow = {"gemm_flops_per_second": {"float32": 1e11, "float64": 1e9}}
    assert [case.frozen_products for case in TINY["mode_update"]] == [False, True]
    assert run.too_slow(TINY["mode_update"][0], slow) is None and run.too_slow(TINY["mode_update"][1], slow)


def test_the_better_of_two_measurements():
    one = {"copy_bytes_per_second": {"1": 5.0}, "gemm_flops_per_second": {"float32": 2.0}, "launch_seconds": 3.0}
    other = {"copy_bytes_per_second": {"1": 4.0}, "gemm_flops_per_second": {"float32": 6.0}, "launch_seconds": 1.0}
    best = {"copy_bytes_per_second": {"1": 5.0}, "gemm_flops_per_second": {"float32": 6.0}, "launch_seconds": 1.0}
    assert machine.better(one, other) == best


def test_two_visits(small, tmp_path):
    """The rounds of both count; a peer that fails the second time keeps those of the first."""
    done = []

    def once_only(t):
        done.append(None)
        if len(done) > 5:  # compilation, memory, three rounds
            raise ValueError("not again")
        return (t["x"] + t["x"],)

    small[1] = toy("two", arms=[plain("best eager", once_only)])
    small[2] = toy("three", function=raises(ValueError("never")))
    said = []
    one, two, three = run_small(tmp_path / "results.json", visits=2, say=said.append)["cases"]
    assert one["arms"][PETX]["fwd"]["rounds"] == one["arms"]["best eager"]["fwd"]["ratio"]["rounds"] == 6
    assert two["arms"][PETX]["fwd"]["rounds"] == 6 and two["arms"]["best eager"]["fwd"]["rounds"] == 3
    assert "peak_bytes" in two["arms"]["best eager"] and "unavailable" not in two["arms"]["best eager"]
    assert "skipped" in three and "[2/3] toy/two float32, visit 2" in said
    assert not any("three" in text and "visit" in text for text in said)


def test_names(small):
    assert [case.name for case in select(small, ["toy/two"])] == ["two"]
    assert len(select(small, ["toy"])) == 3
    with pytest.raises(UserError, match="unknown case 'toy/four'; there are: toy, toy/one, toy/two, toy/three"):
        select(small, ["toy/one", "toy/four"])
    with pytest.raises(UserError, match="unknown peer 'lora'; there are: best eager"):
        select(small, peers=["lora"])


def as_results(median, spread=0.01, device="A", peer=2.0, sizes=None):
    def times(value):
        return {"median": value, "low": value * (1 - spread), "high": value * (1 + spread), "rounds": 5}

    arms = {PETX: {"fwd": times(median)}, "best eager": {"fwd": times(peer) | {"ratio": times(peer / median)}}}
    case = {"operation": "toy", "name": "one", "dtype": "float32", "sizes": sizes or {"N": 8}, "arms": arms}
    return {"version": compare.VERSION, "machine": {"device": device, "threads": 2, "torch": "2"}, "cases": [case]}


def test_summary():
    few, many = timing.summary([3.0, 1.0, 2.0]), timing.summary([float(i) for i in range(21)])
    assert few == {"median": 2.0, "low": 1.0, "high": 3.0, "rounds": 3}
    assert many == {"median": 10.0, "low": 2.0, "high": 18.0, "rounds": 21}


def test_reproduced():
    """A ratio of 2 (1.98 to 2.02) comes again, or does not; an arm that one of the runs lacks does not count."""
    inside, outside = compare.reproduced(as_results(2.0, peer=4.02), as_results(1.0))
    assert inside == ["toy/one float32 fwd, best eager: 2.00x (1.98 to 2.02) then, 2.01x now"] and outside == []
    inside, outside = compare.reproduced(as_results(2.0, peer=4.2), as_results(1.0))
    assert outside == ["toy/one float32 fwd, best eager: 2.00x (1.98 to 2.02) then, 2.10x now"] and inside == []
    without = as_results(1.0)
    del without["cases"][0]["arms"]["best eager"]
    assert compare.reproduced(as_results(1.0), without) == ([], [])
    assert compare.reproduced(as_results(1.0, sizes={"N": 9}), as_results(1.0)) == ([], [])


@pytest.mark.parametrize(
    "now,found",
    [
        (as_results(1.05), []),  # within the tolerance
        (as_results(1.3), ["toy/one float32 fwd: 1e+03 ms then, 1.3e+03 ms now (+30%)"]),
        (as_results(1.3, spread=0.4), []),  # within the spread
        (as_results(0.5), []),
        (as_results(3.0, device="B", peer=6.0), []),  # a slower machine, the same ratio
        (as_results(1.0, device="B", peer=1.0), ["toy/one float32 fwd: 2.00x the best peer then, 1.00x now"]),
        (as_results(3.0, sizes={"N": 9}), []),
    ],
)
def test_regressions(now, found):
    got, notes = compare.regressions(now, as_results(1.0))
    assert got == found
    assert ("another machine" in notes[0]) == (now["machine"]["device"] == "B")
    assert ("other sizes" in notes[-1]) == (now["cases"][0]["sizes"] != {"N": 8})


@pytest.mark.parametrize(
    "text,message",
    [
        (None, "cannot read"),
        ("{", "not JSON"),
        ("[]", "not a results.json"),
        ('{"version": 1, "cases": []}', "version 1"),
    ],
)
def test_compare_refuses(tmp_path, text, message):
    path = tmp_path / "then.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        compare.load(path)


def test_command(small, tmp_path, capsys):
    """The command writes its files, compares with its own earlier run and names what is slower."""
    out = tmp_path / "now"
    options = ["bench", "--quick", "--seconds", "0.01", "--cases", "toy", "--output-dir", str(out)]
    assert cli.main(options) == 0
    text = (out / "report.md").read_text()
    assert "| one | float32 | fwd+bwd |" in text and "![ratios-toy.png](ratios-toy.png)" in text
    assert (out / "ratios-toy.png").read_bytes()[:4] == b"\x89PNG"
    stored = json.loads((out / "results.json").read_text())
    assert "| import of petx over torch | 0.10 s |" in text
    assert stored["command"].startswith("petx bench --quick --output-dir")
    for case in stored["cases"]:
        for value in case["arms"][PETX].values():
            if isinstance(value, dict):
                value.update(median=1e-9, low=1e-9, high=1e-9)
    (tmp_path / "then.json").write_text(json.dumps(stored))
    assert cli.main([*options, "--compare", str(tmp_path / "then.json")]) == 1
    assert "slower: toy/one float32 fwd" in capsys.readouterr().out
    assert "**slower**: toy/one" in (out / "report.md").read_text()
    assert cli.main(["bench", "--cases", "nonsense", "--output-dir", str(tmp_path / "never")]) == 2
    assert "there are: toy" in capsys.readouterr().err and not (tmp_path / "never").exists()
    assert cli.main(["bench", "--list"]) == 0
    assert "peers: best eager" in capsys.readouterr().out


def test_slope():
    assert run.slope([(n, 3 * n**1.5) for n in (1, 2, 8)]) == pytest.approx(1.5)


def test_growth(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "ROTATED_BYTES", {"cpu": 1 << 14})
    cases = [operations.mixture(n, torch.float32, f"N={n}", d=8, experts=2, rank=4) for n in (16, 64)]
    sweep = run.grow("expert_mixture", "N", cases, "cpu", 0.0, print)
    assert [point["size"] for point in sweep["points"]] == [16, 64]
    assert set(sweep["slopes"]) == set(sweep["points"][0]["seconds"]) == {PETX, peers.BEST}
    constants = {"copy_bytes_per_second": {"1048576": 1e10}, "gemm_flops_per_second": {"float32": 1e11}}
    record = run.describe(cases[0]) | run.attempt(select(cases, peers=[peers.BEST])[0], "cpu", 0.0, print)
    results = {"cases": [record], "growth": [sweep], "constants": constants, "machine": {"device": "a machine"}}
    written = plots.write_plots(tmp_path, results)
    assert [path.name for path in written] == ["ratios-expert_mixture.png", "roofline.png", "growth.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in written)


LAYERS = {
    "bart": lambda: layers.vlpet_layer("bart", torch.float32, batch=2, length=5, **SMALL),
    "t5": lambda: layers.vlpet_layer("t5", torch.float32, batch=2, length=5, d_model=96),
    "vlpet-step": lambda: layers.vlpet_step(torch.float32, batch=2, length=5, target=3, layers=1, **SMALL),
    "petal": lambda: layers.petal_layer(torch.float32, batch=2, text=4, **QFORMER),
    "petal-step": lambda: layers.petal_step(torch.float32, batch=2, text=4, layers=2, **QFORMER),
}
SMALL = dict(d_model=96, encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=50)
QFORMER = dict(hidden_size=48, intermediate_size=32, encoder_hidden_size=24, vocab_size=100)


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, monkeypatch):
    """Every arm runs; petx and the literal form train equally many parameters, the frozen model none."""
    monkeypatch.setattr(timing, "ROTATED_BYTES", {"cpu": 1 << 12})
    case = LAYERS[name]()
    counts, problem = {}, case.make(case, "cpu")
    for arm in case.arms:
        forward, leaves = arm.build(case, problem)
        counts[arm.name] = sum(p.numel() for p in leaves)
        with OperatorsOfPetx() as seen:
            forward(problem.fresh())
        assert bool(seen.names) == (arm.name == PETX), (arm.name, seen.names)
    assert counts[PETX] == counts[peers.LITERAL] > 0 and counts[peers.LORA] > 0 and counts[layers.FROZEN] == 0
    results = timing.measure(case, "cpu", seconds=0.0)
    assert not [arm for arm in results.values() if "unavailable" in arm]
    assert results[PETX]["step" if case.whole else "fwd+bwd"]["median"] > 0


def test_literal_site_is_the_site():
    """In the tuned layer, eager and kernel give one result where dropout is off."""
    case = LAYERS["bart"]()
    problem = case.make(case, "cpu")
    hidden = problem.fresh()
    outputs = {}
    for arm in case.arms[:2]:
        forward, _ = arm.build(case, problem)
        torch.manual_seed(0)  # the host's dropout
        outputs[arm.name] = forward(hidden)[0]
    torch.testing.assert_close(outputs[PETX], outputs[peers.LITERAL], rtol=1e-4, atol=1e-4)
