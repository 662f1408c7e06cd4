"""docs/main-jobs.ipynb: its cells run, one after the other, in a process of their own."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "main-jobs.ipynb"


def cells(kind):
    parts = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(part["source"]) for part in parts if part["cell_type"] == kind]


def test_it_is_a_notebook_without_outputs():
    whole = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (whole["nbformat"], whole["nbformat_minor"]) == (4, 5)
    assert all(cell["outputs"] == [] for cell in whole["cells"] if cell["cell_type"] == "code")
    assert len({cell["id"] for cell in whole["cells"]}) == len(whole["cells"])
    for source in cells("code"):
        ast.parse(source)


@pytest.mark.nightly
def test_its_cells_run(tmp_path):
    script = tmp_path / "cells.py"
    script.write_text("\n\n".join(cells("code")), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(NOTEBOOK.parents[1]), "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "vlpet: " in done.stdout and "petal: " in done.stdout and "(probability " in done.stdout
    assert done.stdout.count("the same to the digit") == 2
