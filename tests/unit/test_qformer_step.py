"""The program that says where the time of a Q-Former's step goes."""

import pytest

from benchmarks import qformer_step
from petx.bench import peers
from petx.bench.case import FROZEN, PETX

SIZES = dict(batch=1, text=2, layers=2, hidden_size=48, encoder_hidden_size=32, intermediate_size=48)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_every_part_is_a_row(capsys):
    assert qformer_step.main(["--threads", "1", "--rounds", "1", "--cpu-time"], SIZES) == 0
    *rows, _, last = capsys.readouterr().out.splitlines()[2:]
    names = [row.split("|")[1].strip() for row in rows]
    assert names[:3] == [peers.LITERAL, PETX, FROZEN] and len(names) == 7 + len(qformer_step.WITHOUT)
    assert last.startswith("literal eager over petx")
