"""Measured beside modelled times: only calls that are the same, and no other figure than the two files'."""

import json
import sys

import pytest

from petx.bench import peers
from petx.bench.case import PETX
from tests.emulator.cost import joined
from tests.emulator.cost.shapes import by_label


def made_up():
    case = by_label()["gated_adapter/bart"]
    cost = {"gated_adapter/bart": {"fwd": {"modelled_us": {"petx": 200.0, "eager": 300.0}}}}
    arms = {PETX: {"fwd": {"median": 1e-4}, "bwd": {"median": 1.0}}, peers.BEST: {"fwd": {"median": 4e-4}}}
    measured = dict(operation=case.operation, dtype="bfloat16", sizes=case.sizes, arms=arms)
    return cost, {"machine": {}, "cases": [measured | {"dtype": "float32"}, measured, measured | {"sizes": {"N": 1}}]}


def test_rows_are_of_the_same_call():
    assert joined.rows(*made_up()) == [["gated_adapter/bart", "fwd", "200", "100", "300", "400", "0.50"]]


def test_a_missing_peer_leaves_its_cell_empty():
    cost, results = made_up()
    del results["cases"][1]["arms"][peers.BEST]
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
