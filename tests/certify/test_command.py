"""`petx certify`, and what `petx info` says of a card."""

import json

import pytest

from petx import cli, ops
from petx.certify import certificate, choice
from tests.certify.fake import MIG, T4


def info(capsys):
    assert cli.main(["info"]) == 0
    return capsys.readouterr().out


def test_a_right_card(cards, capsys):
    assert "not certified yet (the first use of a card, or `petx certify`, does that)" in info(capsys)
    assert cards.started == 0  # petx info certifies nothing
    assert cli.main(["certify"]) == 0
    shown = capsys.readouterr().out
    assert "NVIDIA H100 80GB HBM3, compute capability 9.0, 132 multiprocessors" in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("mode_update  ") and "bfloat16" in line]
    assert "right" in line and "1.0e-07, bound 1.0e-06 (dx of odd)" in line and "used from 4096 rows" in line
    assert len([line for line in shown.splitlines() if " right " in line]) == 4 * len(ops.known())
    assert str(certificate.folder()) in shown
    assert line in info(capsys)
    assert cli.main(["info", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["certificates"]
    assert entry["why"] is None and entry["certificate"]["operations"]["mode_cores"]["float64"]["verdict"] == "right"


def test_a_wrong_kernel(cards, capsys):
    cards.script = ("fake_child.py", "crash")
    assert cli.main(["certify", "--device", "cuda:0"]) == 1
    shown = capsys.readouterr().out
    assert "Wrong:\nmode_update, bfloat16: mode_update-odd ends the process by SIGSEGV" in shown
    assert "mode_update, bfloat16: mode_update-odd ends the process by SIGSEGV" in info(capsys)


def test_unknown(cards, capsys):
    cards.script = ("fake_child.py", "exclusive")
    assert cli.main(["certify"]) == 3
    assert "could not be certified: AcceleratorError: CUDA-capable device(s) is/are busy" in capsys.readouterr().err
    assert not certificate.folder().exists()


def test_a_file_for_another_place(cards, capsys, tmp_path, monkeypatch):
    path = tmp_path / "image.json"
    assert cli.main(["certify", "--output", str(path)]) == 0 and certificate.read(path).findings
    monkeypatch.setenv("PETX_CERTIFICATE", str(path))
    choice.forget()
    capsys.readouterr()
    assert f"certified in {path}" in info(capsys)
    cards.cards = (MIG,)
    assert f"PETX_CERTIFICATE: {path} is for another card" in info(capsys)


def test_a_part_is_not_kept(cards, capsys):
    assert cli.main(["certify", "--operations", "mode_cores", "mode_update", "--untimed", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert set(values["operations"]) == {"mode_cores", "mode_update"} and not certificate.folder().exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "cuda:7"], "device cuda:7 does not exist: there are 1, from cuda:0"),
        (["--device", "tpu"], "device must be a GPU such as cuda:0, got 'tpu'"),
        (["--operations", "softmax"], "operations: there is no 'softmax'; there are cp_reconstruct, expert_mixture"),
        (["--untimed", "--output", "x.json"], "output: a part is no certificate"),
        (["--output", "/proc/none/x.json"], "output: cannot write in '/proc/none'"),
    ],
)
def test_mistakes(cards, capsys, arguments, said):
    assert cli.main(["certify", *arguments]) == 2
    assert said in capsys.readouterr().err and cards.started == 0


def test_a_card_that_is_too_old(cards, capsys):
    cards.cards = (T4,)
    assert cli.main(["certify"]) == 2
    assert "Tesla T4 (cuda:0) cannot be certified: the kernels need compute capability 8.0" in capsys.readouterr().err
    assert "Tesla T4 (cuda:0): the kernels need compute capability 8.0, this card has 7.5" in info(capsys)
