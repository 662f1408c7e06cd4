"""What the CUDA kernels of `cp_reconstruct` cost, counted by the emulator."""

import pytest
import torch

from tests.cases.cp_reconstruct import reconstruct
from tests.checks import outputs_and_grads, wrong

TILE = 64 * 64
PRODUCTS = 8 * 4 * 4  # of a tile, 64 deep: warps of 16 rows by 32 columns, by 16 by 8, 16 deep
TABLE = 240  # modules a launch takes


def counted(emulator, call):
    emulator.library.simt_reset_counters()
    result = call()
    return result, emulator.counters()


@pytest.mark.parametrize("gate", ["none", "sigmoid"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bytes_and_products(dtype, gate, emulator, monkeypatch):
    """The cost by formula: each value asked for and written as often as the tiling says, and no more. By tiles of 64 x
    64, which a rank above 64 takes."""
    monkeypatch.setenv("PETX_CUDA_WIDE", "1")
    modules, rank, rows, columns = 2, 64, 2, 3  # tiles of a weight
    case = reconstruct("cost", modules, 64 * rows, 64 * columns, rank, gate=gate)
    tensors = case.inputs(dtype)
    size, gated = tensors["u"].element_size(), gate != "none"
    halves = 2 if dtype == torch.bfloat16 else 1  # A is an operand of two 16-bit values
    threshold = 256 if gated else 0  # every thread of a block reads it
    tiles, panel = modules * rows * columns, 64 * rank

    outs, forward = counted(emulator, lambda: case.run(tensors))
    mix = panel + rank * rank  # V and M of 64 rows
    assert forward.launches == 1
    assert forward.global_read == size * tiles * (mix + 2 * halves * panel + TILE + threshold)
    assert forward.global_written == size * tiles * (halves * panel + TILE)
    assert forward.matrix_products == (0 if dtype == torch.float32 else tiles * (1 + halves) * PRODUCTS)

    leaves = [t for name, t in tensors.items() if not name.startswith("weight")]
    dout = [torch.ones_like(out) for out in outs]
    _, backward = counted(emulator, lambda: torch.autograd.grad(outs, leaves, dout))
    items = modules * rows
    # D of a tile: dW', A and U, then D itself, written and read back; or dW' alone where there is no gate.
    d = TILE + 2 * halves * panel + TILE if gated else TILE
    read = items * (mix + threshold)  # A of all modules
    read += items * columns * (d + panel) + items * threshold  # blocks of rows: U beside D
    read += items * columns * (TILE + panel)  # blocks of columns: D as it lies there, or dW', and A
    read += 2 * modules * rows * (TILE + panel)  # dV: dA and the cores; dM: dA and V
    sums = items * rank * 64 * columns + (items if gated else 0)  # of dU, one a split, here one an item; thresholds
    assert backward.launches == 4
    assert backward.global_read == size * read + 4 * sums
    written = items * halves * panel + items * panel + (items * columns * TILE if gated else 0)
    results = sum(leaf.numel() for leaf in leaves)
    assert backward.global_written == size * (written + results) + 4 * sums
    products = items + items * columns * (2 + (halves if gated else 0)) + 2 * items
    assert backward.matrix_products == (0 if dtype == torch.float32 else products * PRODUCTS)
    assert forward.bank_conflicts == backward.bank_conflicts == 0


@pytest.mark.parametrize("core", ["full", "diagonal"])
@pytest.mark.parametrize("gate", ["none", "soft"])
def test_launches_do_not_depend_on_the_number_of_modules(core, gate, emulator):
    """One forward and four backward; beyond a table's length, one more of those that read weights."""
    for modules in (1, 48, TABLE + 1):
        more = modules > TABLE
        case = reconstruct("launches", modules, d_out=3, d_in=5, rank=2, core=core, gate=gate)
        tensors = case.inputs(torch.float32)
        outs, forward = counted(emulator, lambda case=case, tensors=tensors: case.run(tensors))
        leaves = [t for name, t in tensors.items() if not name.startswith("weight")]
        dout = [torch.ones_like(out) for out in outs]
        call = lambda outs=outs, leaves=leaves, dout=dout: torch.autograd.grad(outs, leaves, dout)  # noqa: E731
        _, backward = counted(emulator, call)
        assert (forward.launches, backward.launches) == (1 + more, 4 + 2 * more)


def test_more_modules_than_a_table_holds(emulator):
    case = reconstruct("long", TABLE + 3, d_out=3, d_in=5, rank=2, gate="soft", threshold=TABLE + 3)
    tensors = case.inputs(torch.float32)
    assert not wrong(outputs_and_grads(case.run, tensors), case, tensors)


@pytest.mark.parametrize(("modules", "rank"), [(0, 5), (1, 5), (2, 5), (2, 70)])
def test_groups_of_modules_whose_updates_are_stored(modules, rank, emulator, monkeypatch):
    """None, as where one module's are more than the workspace is to hold; or groups of one and of two of three modules,
    whose rows fill no tile: launches of each group for its rows and its columns."""
    case = reconstruct("stored", 3, d_out=70, d_in=67, rank=rank, gate="soft", threshold=3)
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setenv("PETX_CUDA_STORED_BYTES", str(modules * 70 * 128 * dtype.itemsize or 1))
        tensors = case.inputs(dtype)
        assert not wrong(outputs_and_grads(case.run, tensors), case, tensors)
        outs, leaves = case.run(tensors), [tensors[name] for name in ("u", "v", "cores", "threshold")]
        dout = [torch.ones_like(out) for out in outs]
        _, counters = counted(
            emulator, lambda outs=outs, leaves=leaves, dout=dout: torch.autograd.grad(outs, leaves, dout)
        )
        groups = -(-3 // modules) if modules else 1
        assert counters.launches == 2 + 2 * groups


@pytest.mark.parametrize(("needed", "launches"), [("u", 4), ("v", 3), ("cores", 3), ("threshold", 3)])
def test_launches_that_nobody_needs_are_left_out(needed, launches, emulator):
    case = reconstruct("needs", gate="soft")
    tensors = case.inputs(torch.float32, requires_grad=False)
    tensors[needed].requires_grad_()
    outs = case.run(tensors)
    dout = [torch.ones_like(out) for out in outs]
    _, counters = counted(emulator, lambda: torch.autograd.grad(outs, tensors[needed], dout))
    assert counters.launches == launches


@pytest.mark.parametrize(("gate", "like"), [("soft", "2"), ("none", "1")])
def test_few_tiles_go_by_strips_in_a_gated_backward_alone(gate, like, emulator, monkeypatch):
    """A gated one makes A before its rows in any case: the images of U cost no launch. As asked for strips, or none."""
    case = reconstruct("few", d_out=70, d_in=136, rank=24, gate=gate)
    tensors = case.inputs(torch.bfloat16)
    leaves = [t for name, t in tensors.items() if not name.startswith("weight")]
    found = {}
    for wide in ("", "1", "2"):
        monkeypatch.setenv("PETX_CUDA_WIDE", wide)
        outs, forward = counted(emulator, lambda: case.run(tensors))
        dout = [torch.ones_like(out) for out in outs]
        _, backward = counted(emulator, lambda outs=outs, dout=dout: torch.autograd.grad(outs, leaves, dout))
        found[wide] = forward.barriers, backward.barriers
    assert found[""] == (found["1"][0], found[like][1])
    assert found["1"][1] != found["2"][1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_block_takes_several_tiles_of_a_large_call(dtype, emulator):
    """Above 256 tiles: two tiles a block, the last block one."""
    tiles = 2 * 256 + 1
    case = reconstruct("blocks", modules=1, d_out=2, d_in=64 * tiles - 5, rank=3, core="diagonal", gate="soft")
    tensors = case.inputs(dtype, requires_grad=False)
    (out,), counters = counted(emulator, lambda: case.run(tensors))
    torch.testing.assert_close(out, case.expected(tensors)[0])
    assert counters.global_written // out.element_size() <= out.numel() + 2 * 2 * 3 * (tiles + 1) // 2


@pytest.mark.parametrize("core", ["full", "diagonal"])
def test_sixteen_bit_updates_are_rounded_once(core, emulator):
    """On weights of zero the results are the exact updates, rounded: hardly ever a neighbouring value."""
    case = reconstruct("rounded", modules=1, d_out=40, d_in=48, rank=16, core=core)
    tensors = case.inputs(torch.bfloat16, requires_grad=False)
    tensors["weight 0"].zero_()
    exact = case.expected({name: tensor.double() for name, tensor in tensors.items()})[0]
    assert (case.run(tensors)[0] != exact.bfloat16()).double().mean() < 0.02
