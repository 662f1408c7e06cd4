"""The real child, with the emulator as its card: the CUDA kernels' source certifies, and a mistake in it does not."""

import pytest
import torch

from petx import functional, ops
from petx.certify import api, certificate, choice
from petx.certify import cards as machine
from petx.certify import cases as shipped
from petx.certify.choice import CertificateWarning
from petx.certify.process import Limits, examined
from tests.certify.fake import H100, FakeCards, OnGPU
from tests.checks import Recorder
from tests.emulator import kernels
from tests.emulator.mutants import Bench
from tests.emulator.mutations import modules, mutations

SLOW_FIXTURES = {"bench"}
PATIENT = Limits(start=600, silence=600, whole=3600)  # seconds, for a machine that does other work too
CORES = {"mode_cores": shipped.CASES["mode_cores"]}


def emulated(library, seconds=0.5):
    return FakeCards(H100, child=("emulated_child.py", library, seconds))


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(modules()["mode_cores"], tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def whole(bench):
    return bench.library("whole")


@pytest.mark.slow
def test_a_fresh_user_gets_kernels(fresh, whole, monkeypatch):
    """From an empty cache to a call that reaches the CUDA operator, with nothing set."""
    monkeypatch.setattr(shipped, "CASES", CORES)
    monkeypatch.setattr(api, "DTYPES", (torch.float32,))
    monkeypatch.setattr(machine, "cards", emulated(whole))
    assert ops.takes("mode_cores", OnGPU(torch.float32, 6, 6, 6))
    (path,) = certificate.folder().glob("*.json")
    found = certificate.read(path).findings["mode_cores"]["float32"]
    assert found.cases == len(CORES["mode_cores"]) and found.worst["error"] <= found.worst["bound"]
    with torch._subclasses.FakeTensorMode(), Recorder() as recorder:
        core, modes = torch.empty(6, 6, 6, device="cuda"), torch.empty(4, 6, device="cuda")
        functional.mode_cores(core, modes)
        functional.mode_cores(core.bfloat16(), modes.bfloat16())  # which nothing has certified
    assert [function.name() for function, _ in recorder.calls] == ["petx::mode_cores_fwd"]


@pytest.mark.slow
def test_a_slower_kernel_is_right_and_not_taken(fresh, whole, monkeypatch):
    monkeypatch.setattr(shipped, "CASES", CORES)
    monkeypatch.setattr(api, "DTYPES", (torch.float32,))
    monkeypatch.setattr(machine, "cards", emulated(whole, seconds=2.0))
    assert not ops.takes("mode_cores", OnGPU(torch.float32, 6, 6, 6))
    assert choice.why_not("mode_cores", 0) == (
        "it is slower than torch's own operations at every shape that was timed on this card"
    )


@pytest.mark.slow
def test_bfloat16_is_right_too(whole):
    findings, unknown = examined(emulated(whole), H100, [("mode_cores", "bfloat16")])
    assert unknown is None and findings["mode_cores"]["bfloat16"].verdict == "right"


# The cases pass the emulator in its own tests, and here before a release.
@pytest.mark.nightly
@pytest.mark.parametrize("stem", shipped.CASES)
def test_every_entry_point_is_right(stem):
    """Stage 1 of an operation, all its shipped cases in every dtype, by the CUDA kernels' source."""
    work = [(stem, choice.dtype_name(dtype)) for dtype in api.DTYPES]
    findings, unknown = examined(emulated(kernels()), H100, work, limits=PATIENT)
    assert unknown is None and len(findings[stem]) == len(work)
    for found in findings[stem].values():
        assert found.verdict == "right", found.said
        assert found.cases == len(shipped.CASES[stem]) and found.worst["error"] <= found.worst["bound"]


def refused(library, stem, monkeypatch):
    """With a library that has a mistake: the warning names operation, dtype and error, and the reference runs."""
    monkeypatch.setattr(shipped, "CASES", {stem: shipped.CASES[stem]})
    monkeypatch.setattr(api, "DTYPES", (torch.bfloat16,))
    monkeypatch.setattr(machine, "cards", emulated(library))
    said = rf"wrong on NVIDIA H100.*{stem} in bfloat16 \(.*(error|raises|not finite|other bits)"
    with pytest.warns(CertificateWarning, match=said):
        assert not ops.takes(stem, OnGPU(torch.bfloat16, 6, 6, 6))
    assert ops.why_absent(stem, "cuda").startswith("it is wrong on this card in bfloat16: ")
    assert len(list(certificate.folder().glob("*.json"))) == 1  # and it stays refused
    choice.forget()
    assert not ops.takes(stem, OnGPU(torch.bfloat16, 6, 6, 6)) and machine.cards.started == 1


@pytest.mark.slow
def test_a_mutant_is_refused(fresh, bench, whole, monkeypatch):
    [mistake] = [mutation for mutation in mutations(bench.module) if mutation.name == "threshold of the first rank"]
    refused(bench.library("mutant", mistake), "mode_cores", monkeypatch)


# Of each other operation, a mistake in its own sources (tests/emulator/mutations).
MISTAKES = {
    "cp_reconstruct": "core of the first module",
    "expert_mixture": "lost beta",
    "gated_adapter": "lost scale",
    "mode_update": "base not added",
    "query_transformation": "lost factor",
}


def test_every_operation_has_a_mistake():
    assert {*MISTAKES, "mode_cores"} == shipped.CASES.keys()


@pytest.mark.nightly
@pytest.mark.parametrize("stem", MISTAKES)
def test_a_mutant_of_each_operation_is_refused(stem, fresh, tmp_path, monkeypatch):
    module = modules()[stem]
    [mistake] = [mutation for mutation in mutations(module) if mutation.name == MISTAKES[stem]]
    refused(Bench(module, tmp_path / "kernels").library("mutant", mistake), stem, monkeypatch)
