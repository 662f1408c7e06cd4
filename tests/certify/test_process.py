"""What becomes of a child that certifies, and what is said of it."""

import time

import pytest
import torch

from petx.certify import child, process, speed, trial
from petx.certify.cases import CASES, MODULES
from petx.certify.process import Limits, examined
from tests.certify.fake import H100, FakeCards

WORK = [("mode_update", "float32"), ("mode_update", "bfloat16"), ("mode_cores", "bfloat16")]
SHORT = Limits(start=10, silence=1, whole=20)


def run(how, limits=SHORT, work=WORK):
    cards = FakeCards(H100, child=("fake_child.py", *how.split()))
    findings, unknown = examined(cards, H100, work, limits=limits)
    verdicts = {(stem, name): found.verdict for stem, by in findings.items() for name, found in by.items()}
    assert set(verdicts) == set(work)  # all that was asked for, and nothing else
    return findings, unknown, verdicts, cards


def test_all_is_right():
    findings, unknown, verdicts, cards = run("right")
    assert set(verdicts.values()) == {"right"} and unknown is None and cards.started == 1
    assert findings["mode_cores"]["bfloat16"].times and findings["mode_cores"]["bfloat16"].worst["name"] == "dx"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("wrong", "odd: dx: error 3.10e-01"),
        ("crash", "mode_update-odd ends the process by SIGSEGV: an illegal memory access was encountered"),
        ("hang", "mode_update-odd does not end: nothing was heard for 1 s"),
        ("raises", "mode_update-odd raises RuntimeError: unspecified launch failure"),
    ],
)
def test_a_bad_kernel_is_blamed_and_no_other(how, said):
    findings, unknown, verdicts, cards = run(how)
    assert verdicts == dict.fromkeys(WORK, "right") | {("mode_update", "bfloat16"): "wrong"} and unknown is None
    assert findings["mode_update"]["bfloat16"].said.startswith(said)
    assert cards.started == (1 if how == "wrong" else 2)  # another child goes on


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no-memory", "out of memory"),
        ("exclusive", "busy or unavailable"),
        ("no-torch", "No module named 'torch'"),
        ("garbage", "gave an answer that is none"),
        ("half", "the process ended with exit code 0"),
        ("never-ready", "the process does not answer: nothing was heard for 1 s"),
        ("other-card", "another card"),
        ("says-nothing", "said nothing of mode_update, float32"),
        ("unasked", "spoke of softmax, float32"),
    ],
)
def test_what_is_no_kernels_fault_is_unknown(how, said):
    _, unknown, verdicts, cards = run(how, Limits(start=1, silence=1, whole=20))
    assert set(verdicts.values()) == {"unknown"} and said in unknown and cards.started == 1


@pytest.mark.parametrize("how", ["no-memory-later", "killed"])
def test_what_was_found_before_stays(how):
    _, unknown, verdicts, _ = run(how)
    assert verdicts == dict(zip(WORK, ("right", "unknown", "unknown"), strict=True)) and unknown


def test_the_whole_has_a_limit():
    start = time.monotonic()
    _, unknown, verdicts, _ = run("slow 30", Limits(start=60, silence=60, whole=0.5))
    assert set(verdicts.values()) == {"unknown"} and "0.5 s are over" in unknown and time.monotonic() - start < 10


def test_no_process_can_be_started(monkeypatch):
    def refused(*_, **__):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(process.subprocess, "Popen", refused)
    _, unknown, verdicts, _ = run("right")
    assert set(verdicts.values()) == {"unknown"} and "no process could be started: Resource temp" in unknown


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("stem", CASES)
def test_shipped_cases_find_the_cpu_kernels_right(stem, dtype):
    found = trial.tried(stem, dtype, "cpu")
    assert found.verdict == "right", found.said
    assert found.cases >= 10 and found.worst["error"] <= found.worst["bound"]


@pytest.mark.parametrize("stem", CASES)
def test_shipped_cases_cover_what_matters(stem):
    trials = CASES[stem]
    assert any(t.misaligned for t in trials) and any(t.each_gradient for t in trials)
    assert len({t.case.name for t in trials}) == len(trials)
    asked = {name for t in trials for name in t.case.shapes}
    every = {name for t in trials if t.each_gradient for name in t.case.shapes}
    assert {n.rstrip(" 0123456789") for n in asked} == {n.rstrip(" 0123456789") for n in every}
    if trials[0].case.ACTIVATIONS:
        rows = [t.case.shapes[t.case.ACTIVATIONS[0]][:-1] for t in trials]
        sizes = [torch.Size(r).numel() for r in rows]
        assert 1 in sizes and max(sizes) > 512 and any(64 < n < 128 for n in sizes)  # a row, two splits, a ragged tile


@pytest.mark.parametrize("stem", ["expert_mixture", "gated_adapter", "mode_update"])
def test_a_block_with_several_column_tiles_is_certified(stem):
    """What every call of many rows takes, and a small one only if it is told to."""
    told = [t.case for t in CASES[stem] if t.environment.get("PETX_CUDA_SHARES") == "1"]
    assert any(case.shapes[case.ACTIVATIONS[0]][-1] > 2 * 64 for case in told)


def test_a_card_runs_few_cases():
    assert 9 * len(CASES) <= sum(map(len, CASES.values())) <= 16 * len(CASES)


def of_mode_cores(monkeypatch, kernel, as_the_child=False):
    """Trials of mode_cores with another kernel."""
    plain = torch.ops.petx.mode_cores_fwd

    class Petx:
        mode_cores_bwd = torch.ops.petx.mode_cores_bwd
        mode_cores_fwd = staticmethod(lambda *args: kernel(plain(*args), *args))

    class Namespace:
        petx = Petx()

        def __getattr__(self, name):
            return getattr(REAL, name)

    REAL = torch.ops
    monkeypatch.setattr(torch, "ops", Namespace())
    if as_the_child:
        return child.examine("mode_cores", torch.float32, "cpu", False, lambda case: None).said
    return trial.tried("mode_cores", torch.float32, "cpu").said


def wrong_by_a_little(out, *_):
    return out * (1 + 1e-5)


def forgets_a_value(out, *_):
    out.view(-1)[-1] = float("nan")
    return out


def writes_into_its_input(out, core, *_):
    core.detach().view(-1)[0] += 1
    return out


def writes_beside_its_input(out, core, *_):
    core.detach().as_strided((1,), (1,), core.storage_offset() - 1).add_(1)
    return out


def is_never_the_same(out, *_):
    is_never_the_same.calls += 1
    return out * (1 + 2.0**-22 * (is_never_the_same.calls % 2))


is_never_the_same.calls = 0


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (wrong_by_a_little, "none: out: error 1"),
        (forgets_a_value, "none: out is not finite"),
        (writes_into_its_input, "none: the input core was changed"),
        (writes_beside_its_input, "none: memory beside the input core was changed"),
        (is_never_the_same, "none: out has other bits in a second run"),
    ],
)
def test_what_a_kernel_may_do_wrong(monkeypatch, kernel, said):
    assert of_mode_cores(monkeypatch, kernel).startswith(said)


def test_what_a_kernel_leaves_unwritten_is_noticed(monkeypatch):
    """Though the memory may hold the right values by chance: the child fills what is new with NaN."""
    found = of_mode_cores(monkeypatch, lambda out, *_: torch.empty_like(out), as_the_child=True)
    assert found.startswith("none: out is not finite") and not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("stem", CASES)
def test_times_beside_eager_torch(stem, monkeypatch):
    """On the CPU, with one small shape of each operation's."""
    rows, width, rank = MODULES[stem].SHAPES[0]
    monkeypatch.setattr(MODULES[stem], "SHAPES", [(rows // 4, width // 4, rank if stem == "mode_cores" else rank // 4)])
    monkeypatch.setattr(speed, "SECONDS", 0.01)
    said = []
    (point,) = speed.times(stem, torch.float32, "cpu", said.append)
    assert point[:3] == [*MODULES[stem].SHAPES[0]] and 0 < point[3] < 5 and 0 < point[4] < 5
    assert said == [f"{stem}, {point[0]:.0f} x {point[1]:.0f}, rank {point[2]:.0f}"]


@pytest.mark.parametrize("stem", CASES)
def test_shapes_that_do_not_fit_are_left_out(stem, monkeypatch):
    monkeypatch.setattr(speed, "_free", lambda device: 1000)
    assert speed.times(stem, torch.float32, "cpu") == []
