"""The real child, with the emulator as its card: the CUDA kernels' source certifies, and a mistake in it does not."""

import pytest
import torch

from petx import functional, ops
from petx.certify import api, certificate, choice
from petx.certify import cards as machine
from petx.certify import cases as shipped
from petx.certify.choice import CertificateWarning
from petx.certify.process import examined
from tests.certify.fake import H100, FakeCards, OnGPU
from tests.checks import Recorder
from tests.emulator.mutants import Bench
from tests.emulator.mutations import modules, mutations

CORES = {"mode_cores": shipped.CASES["mode_cores"]}


def emulated(library, seconds=0.5):
    return FakeCards(H100, child=("emulated_child.py", library, seconds))


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(modules()["mode_cores"], tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def whole(bench):
    return bench.library("whole")


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


def test_a_slower_kernel_is_right_and_not_taken(fresh, whole, monkeypatch):
    monkeypatch.setattr(shipped, "CASES", CORES)
    monkeypatch.setattr(api, "DTYPES", (torch.float32,))
    monkeypatch.setattr(machine, "cards", emulated(whole, seconds=2.0))
    assert not ops.takes("mode_cores", OnGPU(torch.float32, 6, 6, 6))
    assert choice.why_not("mode_cores", 0) == (
        "it is slower than torch's own operations at every shape that was timed on this card"
    )


def test_bfloat16_is_right_too(whole):
    findings, unknown = examined(emulated(whole), H100, [("mode_cores", "bfloat16")])
    assert unknown is None and findings["mode_cores"]["bfloat16"].verdict == "right"


def test_a_mutant_is_refused(fresh, bench, whole, monkeypatch):
    """A mistake built into the library: the operation, the dtype and the error are named, and the reference runs."""
    library = bench.library("mutant", mutations(bench.module)[0])
    monkeypatch.setattr(shipped, "CASES", CORES)
    monkeypatch.setattr(api, "DTYPES", (torch.bfloat16,))
    monkeypatch.setattr(machine, "cards", emulated(library))
    with pytest.warns(CertificateWarning, match=r"wrong on NVIDIA H100.*mode_cores in bfloat16 \(.*(error|raises)"):
        assert not ops.takes("mode_cores", OnGPU(torch.bfloat16, 6, 6, 6))
    assert ops.why_absent("mode_cores", "cuda").startswith("it is wrong on this card: ")
    assert len(list(certificate.folder().glob("*.json"))) == 1  # and it stays refused
