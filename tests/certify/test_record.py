"""What a checkpoint says of the paths, and what a resumed run says of it."""

import json

import torch

from petx import certify, ops
from petx.certify import api, certificate, choice
from petx.certify import cards as machine
from petx.train import checkpoints
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


def test_a_checkpoint_says_what_a_resume_does_otherwise(cards, tmp_path):
    """As the recipes' checkpoints are written and asked: a run of two dtypes whose card is certified again later."""
    other = OnGPU(torch.float32, 8, 512, 768)
    assert ops.takes("mode_update", X, 64) and ops.takes("mode_update", other, 64)
    checkpoints.mark_whole(tmp_path, 1.0)
    choice.forget()
    assert checkpoints.other_paths(tmp_path) == []
    cards.script = ("fake_child.py", "wrong")
    certify.certify()
    said = [f"mode_update in bfloat16 on {H100.name}: kernel before, reference now"]
    assert checkpoints.other_paths(tmp_path) == said


def test_a_compiled_graphs_choice_is_recorded_too(cards, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert ops.takes("mode_update", X, 64)
    saved = recorded()
    assert [(entry["bits"], entry["path"]) for entry in saved["cuda"]] == [(None, "kernel")]
    assert certify.differences(saved) == []


def test_another_process_changes_no_choice_of_a_run(cards):
    """Not even for shapes that come later: the certificate is read once."""
    assert ops.takes("mode_update", X)
    (path,) = certificate.folder().glob("*.json")
    found = certificate.read(path)
    for by in found.findings.values():
        for name in by:
            by[name] = certificate.Finding("wrong", "odd: out is not finite")
    certificate.write(found, path)
    assert ops.takes("mode_update", X) and ops.takes("mode_update", OnGPU(torch.bfloat16, 64, 512, 1024))
    choice.forget()  # the next run
    assert not ops.takes("mode_update", X)
