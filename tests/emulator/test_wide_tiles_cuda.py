"""Tiles of 128 x 32 n, which only large calls take: asked for here by PETX_CUDA_WIDE, n, in small ones."""

import pytest
import torch

from tests.cases.expert_mixture import mixture
from tests.cases.gated_adapter import BART_TAIL, site
from tests.cases.mode_update import modes
from tests.checks import outputs_and_grads, wrong
from tests.emulator.contracts import counted, hold, hold_conflicts, hold_right_in_bfloat16
from tests.emulator.test_gated_adapter_cuda import cost_backward, cost_forward

SPLITS = 3
UP = (64, 128)  # tiles of the products up, whatever n
PARTS = pytest.mark.parametrize("parts", [2, 3])
# Whole tiles; ragged ones whose packs are whole; sizes that no pack divides; heads; the longer side in either place.
CASES = [
    site("whole", batch=(1, 192), d=192, r=96, r_g=64, granularity="large"),
    site("ragged", batch=(1, 150), d=136, r=104, r_g=40, granularity="large", **BART_TAIL),
    site("odd", batch=(1, 131), d=131, r=67, r_g=5, granularity="large", **BART_TAIL),
    # A float32 stream beside, and a token's gate, whose sums go through tiles.
    site("stream", batch=(1, 131), d=136, r=40, r_g=24, granularity="large", stream=True, **BART_TAIL),
    site("stream-gate", batch=(2, 35), d=131, r=40, granularity="small", stream=True, **BART_TAIL),
    site("heads", batch=(1, 20), d=48, r=24, heads=3, granularity="middleY"),
    # An even width of a gradient whose sums begin at an odd place.
    site("odd-place", batch=(1, 20), d=7, d_x=8, r=9, placement="parallel"),
    site("one-token", batch=(1, 1), d=24, granularity="large"),
    modes("projections", batch=(1, 150), d_in=136, d_out=37, rank=72, count=2, dropout=0.1),
    modes("projections-staged", batch=(1, 150), d_in=331, d_out=136, rank=40, count=2, dropout=0.1),
    modes("projections-parts", batch=(1, 150), d_in=72, d_out=643, rank=72, count=2, dropout=0.1),
    modes("projections-diagonal", batch=(1, 131), d_in=37, d_out=35, rank=67, core="diagonal", dropout=0.1),
    mixture("experts", batch=(1, 150), d=136, experts=3, rank=23, gate="token"),
    # Ranks and experts' own columns in one tile of 128 x 96.
    mixture("joined", batch=(1, 150), d=136, experts=3, rank=20, gate="token", scope=True),
    mixture("joined-odd", batch=(1, 67), d=131, experts=5, rank=7, gate="sample"),
    mixture("joined-unbiased", batch=(1, 33), d=24, experts=2, rank=5, gate="token", bias=False),
]
COSTS = [
    site("whole", batch=(1, 192), d=192, r=96, r_g=64, granularity="large"),
    site("ragged", batch=(1, 150), d=136, r=104, x=False),
]


@pytest.fixture(autouse=True)
def wide(request, monkeypatch):
    monkeypatch.setenv("PETX_CUDA_SPLITS", str(SPLITS))
    if "parts" in request.fixturenames:
        monkeypatch.setenv("PETX_CUDA_WIDE", str(request.getfixturevalue("parts")))


@PARTS
@pytest.mark.parametrize("case", CASES, ids=str)
def test_right(case, parts, emulator):
    hold_right_in_bfloat16(case, emulator)


def test_right_off_alignment(emulator, monkeypatch):
    monkeypatch.setenv("PETX_CUDA_WIDE", "3")
    case = site("off", batch=(1, 131), d=136, r=40, r_g=40, granularity="large")
    tensors = case.inputs(torch.float16)
    monkeypatch.setattr(emulator, "offset", 1)
    assert not wrong(outputs_and_grads(case.run, tensors), case, tensors)


@PARTS
@pytest.mark.parametrize("case", COSTS, ids=str)
def test_cost(case, parts, emulator):
    """Each operand once a tile, each sum once a split, and no product of what a tile has too many but in its shape."""
    tile, tensors = (128, 32 * parts), case.inputs(torch.bfloat16)
    with counted(emulator) as found:
        out = case.run(tensors)
    hold(found[0], *cost_forward(case, 2, tile, UP))
    hold_conflicts(emulator)
    with counted(emulator) as found:
        out.backward(torch.ones_like(out))
    hold(found[0], *cost_backward(case, 2, tile, UP, SPLITS))
    hold_conflicts(emulator)


def test_other_types_have_no_such_tiles(emulator, monkeypatch):
    results = []
    case = site("plain", batch=(1, 70), d=72, r=16, r_g=16, granularity="large")
    for parts in ("1", "3"):
        monkeypatch.setenv("PETX_CUDA_WIDE", parts)
        results.append(outputs_and_grads(case.run, case.inputs(torch.float32)))
    assert all(value is None or torch.equal(value, results[1][name]) for name, value in results[0].items())
