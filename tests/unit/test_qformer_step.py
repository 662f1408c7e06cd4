"""The program that says where the time of a Q-Former's step goes."""

import pytest

from benchmarks import qformer_step
from petx.bench import peers
from petx.bench.case import FROZEN, PETX

SIZES = dict(batch=1, text=2, layers=2, hidden_size=48, encoder_hidden_size=32, intermediate_size=48)


ONCE = ["--threads", "1", "--rounds", "1", "--cpu-time"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_every_part_is_a_row(capsys):
    assert qformer_step.main(ONCE, SIZES) == 0
    *rows, _, last = capsys.readouterr().out.splitlines()[2:]
    names = [row.split("|")[1].strip() for row in rows]
    assert names[:3] == [peers.LITERAL, PETX, FROZEN] and len(names) == 7 + len(qformer_step.WITHOUT)
    assert last.startswith("literal eager over petx")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_processes_build_in_other_orders_and_give_medians(capsys, monkeypatch):
    """Two of three say 2 and 4; the third, started for real, is alone in its process."""
    real, firsts = qformer_step.measure_anew, []

    def measure_anew(given, sizes, first):
        firsts.append(first)
        ms, ratio = real(given, sizes, first) if len(firsts) == 1 else (MADE_UP, 2.0 * (len(firsts) - 1))
        assert ms.keys() == MADE_UP.keys() and ratio > 0
        return MADE_UP, 3.0 if len(firsts) == 1 else ratio

    parts = (peers.LITERAL, PETX, FROZEN, *qformer_step.WITHOUT)
    parts += (qformer_step.OPTIMIZER, qformer_step.OPERATORS, qformer_step.PRODUCTS)
    MADE_UP = dict.fromkeys(parts, 5.0)
    monkeypatch.setattr(qformer_step, "measure_anew", measure_anew)
    assert qformer_step.main([*ONCE, "--processes", "3"], SIZES) == 0
    assert firsts == [0, 1, 2]
    assert capsys.readouterr().out.splitlines()[-1].endswith("3.000, of 3 processes: 2.000 to 4.000")
