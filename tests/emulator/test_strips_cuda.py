"""Products by strips of 64 rows (common/strip.cuh), which only large calls take: asked for here in small ones."""

import pytest
import torch

from tests.cases.cp_reconstruct import SIGMOID, reconstruct
from tests.cases.expert_mixture import mixture
from tests.checks import outputs_and_grads, wrong
from tests.emulator.contracts import counted, hold_conflicts, hold_right_in_bfloat16

# Whole tiles and packs; ragged ones of whole packs, of which the last lies in the first stage again, where the
# threshold's sums will lie; sizes that no pack divides; each gate.
CASES = [
    reconstruct("whole", d_out=64, d_in=192, rank=64, gate="soft"),
    reconstruct("ragged", modules=3, d_out=72, d_in=200, rank=40, threshold=3, **SIGMOID),
    reconstruct("odd", modules=2, d_out=67, d_in=83, rank=13, core="diagonal", gate="hard", scale=-3.0),
    reconstruct("none", d_out=9, d_in=300, rank=33, scale=0.5),
    mixture("experts", batch=(2, 75), d=136, experts=3, rank=20, gate="token", alpha=0.5),
    mixture("odd", batch=(3, 29), d=131, experts=5, rank=11, gate="sample", scope=True),
]


@pytest.fixture(autouse=True)
def strips(monkeypatch):
    monkeypatch.setenv("PETX_CUDA_WIDE", "2")
    monkeypatch.setenv("PETX_CUDA_SPLITS", "3")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_right(case, emulator):
    hold_right_in_bfloat16(case, emulator)


def test_right_off_alignment(emulator, monkeypatch):
    case = reconstruct("off", d_out=70, d_in=72, rank=24, gate="soft")
    tensors = case.inputs(torch.float16)
    monkeypatch.setattr(emulator, "offset", 1)
    assert not wrong(outputs_and_grads(case.run, tensors), case, tensors)


def test_cost(emulator):
    """By formula: each weight and gradient once, D of a tile written once and read once, images once a block."""
    modules, rows, columns, size = 2, 2, 3, 2  # tiles of 64
    tile, products = 64 * 64, 64 * 64 * 64 // (16 * 8 * 16)
    case = reconstruct("cost", modules, 64 * rows, 64 * columns, 64, **SIGMOID)
    tensors = case.inputs(torch.bfloat16)
    items, threads = modules * rows, 128  # each of a block reads the threshold
    with counted(emulator) as found:
        outs = case.run(tensors)
    hold_conflicts(emulator)
    [forward] = found
    # V, M and the threshold for A, which is two operands; U for its images; then a block for each tile.
    mixed, images = 2 * items * tile, columns * tile
    prepared = items * (2 * tile + 256) + images
    assert forward.launches == 2
    assert forward.global_read == size * (prepared + items * columns * (2 * tile + tile + tile + threads))
    assert forward.global_written == size * (mixed + images + items * columns * tile)
    assert forward.matrix_products == products * items * (1 + 2 * columns)

    leaves = [t for name, t in tensors.items() if not name.startswith("weight")]
    with counted(emulator) as found:
        torch.autograd.grad(outs, leaves, [torch.ones_like(out) for out in outs])
    hold_conflicts(emulator)
    [backward] = found
    by_rows = items * (2 * tile + threads + columns * (tile + tile))  # A; dW' and the image of each tile
    wide = -(-columns // 2)  # tiles of 128 columns
    by_columns = items * tile * (columns + wide)  # D, and A for each of them
    finished = 2 * items * (tile + tile)  # dA and the cores, dA and V
    sums = items * tile * columns + items  # of dU, one a split, here one an item; thresholds
    assert backward.launches == 4
    assert backward.global_read == size * (prepared + by_rows + by_columns + finished) + 4 * sums
    results = sum(leaf.numel() for leaf in leaves)
    written = mixed + images + items * (columns * tile + tile) + results
    assert backward.global_written == size * written + 4 * sums
    assert backward.matrix_products == products * items * (1 + 3 * columns + 2 * wide + 2)
