"""The command `petx bench`: what a run keeps, compares, lists and draws, on cases that cost nothing."""

import json

import pytest
import torch

from petx import cli, ops
from petx.bench import calls, compare, machine, peers, plots, process, report, run, table, timing
from petx.bench import case as bench_case
from petx.bench.case import PETX, plain, select
from petx.bench.ops import expert_mixture
from petx.errors import UserError


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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.skipif(ops._C is None, reason="needs the compiled library's operators")
def test_calls_and_their_operators(small, tmp_path):
    measured = calls.overheads("cpu", seconds=0.0)
    layers_ = {"GatedAdapter", "ValueAdapter", "ExpertMixture", "ModeCores", "ModeLinear", "torch's Linear"}
    assert set(measured) == layers_
    assert all(0 < seconds < 1 for times in measured.values() for seconds in times.values())
    results = run_small(tmp_path / "results.json") | {"process": {"call_overheads": measured}}
    assert "| GatedAdapter | " in report.markdown(results)
    assert calls.overheads("meta") == {}


def test_the_better_of_two_measurements():
    one = {"copy_bytes_per_second": {"1": 5.0}, "gemm_flops_per_second": {"float32": 2.0}, "launch_seconds": 3.0}
    other = {"copy_bytes_per_second": {"1": 4.0}, "gemm_flops_per_second": {"float32": 6.0}, "launch_seconds": 1.0}
    best = {"copy_bytes_per_second": {"1": 5.0}, "gemm_flops_per_second": {"float32": 6.0}, "launch_seconds": 1.0}
    assert machine.better(one, other) == best


@pytest.mark.nightly
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


@pytest.mark.slow
def test_command(small, tmp_path, capsys, monkeypatch):
    """The command writes its files, compares with its own earlier run and names what is slower."""
    monkeypatch.setattr(calls, "overheads", lambda device: {})
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


@pytest.mark.nightly
def test_growth(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "ROTATED_BYTES", {"cpu": 1 << 14})
    cases = [expert_mixture.case(n, torch.float32, f"N={n}", d=8, experts=2, rank=4) for n in (16, 64)]
    sweep = run.grow("expert_mixture", "N", cases, "cpu", 0.0, print)
    assert [point["size"] for point in sweep["points"]] == [16, 64]
    assert set(sweep["slopes"]) == set(sweep["points"][0]["seconds"]) == {PETX, peers.BEST}
    constants = {"copy_bytes_per_second": {"1048576": 1e10}, "gemm_flops_per_second": {"float32": 1e11}}
    record = run.describe(cases[0]) | run.attempt(select(cases, peers=[peers.BEST])[0], "cpu", 0.0, print)
    results = {"cases": [record], "growth": [sweep], "constants": constants, "machine": {"device": "a machine"}}
    written = plots.write_plots(tmp_path, results)
    assert [path.name for path in written] == ["ratios-expert_mixture.png", "roofline.png", "growth.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in written)
