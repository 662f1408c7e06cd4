"""What a checkpoint says of the paths, and what a resumed run says of it."""

import json

import torch

from petx import certify, ops
from petx.certify import api, certificate, choice
from petx.certify import cards as machine
from tests.certify.fake import H100, MIG, OnGPU

X = OnGPU(torch.bfloat16, 8, 512, 768)


def recorded():
    """As a checkpoint has it."""
    return json.loads(json.dumps(certify.record()))


def test_on_a_cpu(monkeypatch):
    saved = recorded()
    assert saved["cpu"] == {stem: "kernel" for stem in ops.known()}
    assert certify.differences(saved) == []
    monkeypatch.setattr(ops, "_fused", ops._fused - {("mode_update", "cpu")})
    assert certify.differences(saved) == ["mode_update on the CPU: kernel before, reference now"]


def test_the_same_certificate_has_the_same_paths(cards):
    ops.takes("mode_update", X)
    ops.takes("mode_update", OnGPU(torch.bfloat16, 2, 128, 768), 64)
    saved = recorded()
    assert {(entry["operation"], entry["path"]) for entry in saved["cuda"]} == {
        ("mode_update", "kernel"),
        ("mode_update", "reference"),
    }
    choice.forget()
    assert certify.differences(saved) == []


def test_another_certificate_may_have_others(cards):
    ops.takes("mode_update", X)
    saved = recorded()
    cards.script = ("fake_child.py", "wrong")
    (path,) = certificate.folder().glob("*.json")
    path.unlink()
    choice.forget()
    assert certify.differences(saved) == [f"mode_update in bfloat16 on {H100.name}: kernel before, reference now"]


def test_a_pin_is_another_path(cards, monkeypatch):
    ops.takes("mode_update", X)
    saved = recorded()
    choice.forget()
    monkeypatch.setenv("PETX_CUDA_KERNELS", "0")
    assert certify.differences(saved) == [f"mode_update in bfloat16 on {H100.name}: kernel before, reference now"]


def test_another_card(cards):
    ops.takes("mode_update", X)
    saved = recorded()
    choice.forget()
    cards.cards = (MIG,)
    assert certify.differences(saved) == [f"mode_update in bfloat16 on {H100.name} before, {MIG.name} now"]
    machine.cards.cards = ()
    assert certify.differences(saved) == [f"mode_update in bfloat16 on {H100.name} before, no GPU now"]


def test_certifying_by_hand_is_used_at_once(cards):
    cards.script = ("fake_child.py", "no-memory")
    api.made(cards.card(0))
    cards.script = ("fake_child.py", "right")
    certify.certify("cuda:0")
    assert ops.takes("mode_update", X)
    partial = certify.certify(operations=["mode_cores"], timed=False)
    assert set(partial.findings) == {"mode_cores"} and partial.path is None
