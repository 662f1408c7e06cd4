"""What a user's call takes on a card, by the certificate's times: each operation tells its rank."""

import pytest
import torch

from petx import functional, reference
from petx.certify import certificate, choice
from petx.certify.cases import CASES
from petx.certify.certificate import Certificate, Finding
from tests.certify.calls import CALLS
from tests.certify.fake import H100, OnGPU
from tests.checks import Recorder

LOW, HIGH = 8, 64  # the first is slower than eager torch, the second faster


def faster_from(rank):
    """A certificate that tells ranks apart, and nothing else."""
    times = [[15, 24, LOW, 2.0, 1.0], [15, 24, rank, 1.0, 2.0]]
    return {"float32": Finding("right", times=times)}


class TookReference(Exception):
    """In the reference's place, which torch without CUDA cannot index on a fake GPU."""


@pytest.fixture
def paths(monkeypatch):
    """Which path a call on a GPU takes."""

    def refuse(*_, **__):
        raise TookReference

    for stem in CALLS:
        monkeypatch.setattr(reference, stem, refuse)

    def path_of(case, parameters=torch.float32):
        kept = {*case.ACTIVATIONS, "core"} | {name for name in case.shapes if name.startswith("weight ")}
        with torch._subclasses.FakeTensorMode(), torch.no_grad(), Recorder() as recorder:
            tensors = {
                name: torch.empty(shape, device="cuda", dtype=torch.float32 if name in kept else parameters)
                for name, shape in case.shapes.items()
            }
            try:
                case.call(tensors, {})
            except TookReference:
                return "reference"
        return [function.name() for function, _ in recorder.calls]

    return path_of


def test_every_operation_is_here():
    assert CALLS.keys() == CASES.keys()


@pytest.mark.parametrize("parameters", [torch.float32, torch.float64], ids=["fast-path", "slow-path"])
@pytest.mark.parametrize("stem", CALLS)
def test_the_rank_decides(stem, parameters, cards, paths):
    choice._of[0] = choice.of_certificate(Certificate({}, {stem: faster_from(HIGH)}), H100)
    assert paths(CALLS[stem](LOW), parameters) == "reference"
    assert paths(CALLS[stem](HIGH), parameters) == [f"petx::{stem}_fwd"]
    ranks = {key[-1]: taken for key, taken in choice._answers.items()}
    assert ranks == {LOW: False, HIGH: True}  # no call asked without its rank
    assert cards.started == 0


@pytest.mark.parametrize("stem", CALLS)
def test_a_missing_tensor_is_refused_in_words(stem, cards):
    """The rank of a tensor that is none: the check says which argument it is."""
    choice._of[0] = choice.of_certificate(Certificate({}, {stem: faster_from(HIGH)}), H100)
    case, extras = CALLS[stem](HIGH), {}
    names = dict(gated_adapter="down_weight", expert_mixture="down_weight", mode_cores="modes")
    name = (names | {"query_transformation": "scale"}).get(stem, "cores")
    for value in (None, torch.tensor(1.0), "no tensor"):
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            tensors = {n: torch.empty(shape, device="cuda") for n, shape in case.shapes.items()} | {name: value}
            with pytest.raises((TypeError, ValueError), match=f"{stem}: {name} must be"):
                case.call(tensors, extras)


def test_fake_tensors_certify_nothing(cards, paths):
    """Without a certificate they take the reference, and a tensor of the card that comes after them asks again."""
    with pytest.warns(choice.CertificateWarning, match="not certified yet"):
        assert paths(CALLS["mode_update"](HIGH)) == "reference"
    assert cards.started == 0 and not certificate.folder().exists()
    assert choice.takes("mode_update", OnGPU(torch.float32, 4096, 768), HIGH) and cards.started == 1
    assert paths(CALLS["mode_update"](HIGH, (8, 512))) == ["petx::mode_update_fwd"]  # now that there is one


def test_an_export_takes_what_a_named_certificate_says(cards, paths, fresh, monkeypatch):
    """On a machine without a GPU, by torch.export, whose tensors are fake."""
    put = fresh / "image.json"
    certificate.write(Certificate(certificate.facts_of(H100), {"mode_cores": faster_from(LOW)}), put)
    monkeypatch.setenv("PETX_CERTIFICATE", str(put))
    cards.cards = ()

    class Cores(torch.nn.Module):
        def forward(self, core, modes):
            return functional.mode_cores(core, modes)

    with torch._subclasses.FakeTensorMode(), torch.no_grad():
        arguments = torch.empty(8, 8, 8, device="cuda"), torch.empty(15, 8, device="cuda")
        graph = torch.export.export(Cores(), arguments).graph
    assert "petx.mode_cores_fwd" in str([node.target for node in graph.nodes])
