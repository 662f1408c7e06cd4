"""Measured beside modelled times: only calls that are the same, and no other figure than the two files'."""

import json
import sys

import pytest
import torch

from petx.bench import peers
from petx.bench.case import PETX
from tests.emulator.cost import joined, on_card
from tests.emulator.cost.shapes import by_label


def made_up():
    case = by_label()["gated_adapter/bart"]
    cost = {"gated_adapter/bart": {"fwd": {"modelled_us": {"petx": 200.0, "eager": 300.0, "inductor": 250.0}}}}
    arms = {PETX: {"fwd": {"median": 1e-4}, "bwd": {"median": 1.0}}, peers.BEST: {"fwd": {"median": 4e-4}}}
    arms[peers.COMPILED] = {"unavailable": "no compiler"}
    call = dict(operation=case.operation, dtype="bfloat16", sizes=case.sizes)
    others = [call | {"dtype": "float32", "arms": arms}, call | {"skipped": "no memory"}]
    return cost, {"machine": {}, "cases": [*others, call | {"arms": arms}, call | {"sizes": {"N": 1}, "arms": arms}]}


def test_rows_are_of_the_same_call():
    assert joined.rows(*made_up()) == [["gated_adapter/bart", "fwd", "200", "100", "300", "400", "250", "-", "0.50"]]


def test_a_missing_peer_leaves_its_cell_empty():
    cost, results = made_up()
    del results["cases"][2]["arms"][peers.BEST]
    assert joined.rows(cost, results)[0][5] == "-"


def test_command(tmp_path, monkeypatch, capsys):
    paths = [tmp_path / "cost.json", tmp_path / "results.json"]
    for path, content in zip(paths, made_up(), strict=True):
        path.write_text(json.dumps(content))
    monkeypatch.setattr(sys, "argv", ["joined", *map(str, paths)])
    assert joined.main() == 0
    assert "| gated_adapter/bart | fwd | 200 | 100 |" in capsys.readouterr().out
    paths[1].write_text(json.dumps({"machine": {}, "cases": []}))
    with pytest.raises(SystemExit):
        joined.main()
    assert "has no case of the calls" in capsys.readouterr().err


def test_a_report_of_this_machine_is_joined(tmp_path, monkeypatch, capsys):
    """What on_card measures, here on the CPU, has every cell of its call's rows."""
    paths = [tmp_path / "cost.json", tmp_path / "results.json"]
    model = {"modelled_us": {"petx": 12.0, "eager": 3.0, "inductor": 3.0}}
    paths[0].write_text(json.dumps({"mode_cores/qformer": {"fwd": model, "bwd": model}}))
    arguments = ["--only", "mode_cores/qformer", "--seconds", "0.1", "--device", "cpu"]
    monkeypatch.setattr(on_card, "PEERS", (peers.BEST,))
    monkeypatch.setattr(sys, "argv", ["on_card", str(paths[1]), *arguments])
    assert on_card.main() == 0
    monkeypatch.setattr(sys, "argv", ["joined", *map(str, paths)])
    capsys.readouterr()
    assert joined.main() == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "mode_cores/qformer" in line]
    assert [row[1] for row in rows] == ["fwd", "bwd"]
    for row in rows:
        assert (row[2], row[4], row[6], row[7]) == ("12", "3", "3", "-") and float(row[3]) > 0 and float(row[5]) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["on_card", str(tmp_path / "results.json")])
    with pytest.raises(SystemExit):
        on_card.main()
    assert "there is no GPU here" in capsys.readouterr().err and not list(tmp_path.iterdir())
