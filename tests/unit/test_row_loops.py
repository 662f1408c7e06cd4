"""Counts of the CPU's row loops, which docs/benchmarks.md shows."""

import shutil

import pytest

from benchmarks import row_loops


@pytest.mark.nightly  # a compilation, and twenty programs under valgrind
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_the_table_is_that_of_the_docs(tmp_path):
    """Row by row; another compiler's counts may differ by a few tenths."""
    page = (row_loops.ROOT / "docs" / "benchmarks.md").read_text()
    program = row_loops.compiled(tmp_path)
    for title, tail in row_loops.COLUMNS.items():
        assert title in page
        found = row_loops.column(program, tail)
        assert all(f"| {row} | " in page for row in found)
        whole, parts = float(found["forward"]), list(found.values())[1:5]
        assert whole == pytest.approx(sum(float(part) for part in parts if part != "-"), abs=0.25)
        assert 0 < whole < 18 and float(found["backward"]) > whole


def test_without_valgrind_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(row_loops.shutil, "which", lambda name: None)
    assert row_loops.main() == 2 and "valgrind" in capsys.readouterr().err
