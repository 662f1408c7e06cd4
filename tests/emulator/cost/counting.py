"""Runs a call forward and backward by nvcc's kernels and says what each launch took."""

import ctypes
import itertools
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import torch

from petx.bench.case import PETX, BenchCase
from tests.emulator.operations import in_place_of_cpu_kernels
from tests.emulator.ptx import PtxEmulator

SAMPLE = 3  # blocks of each launch, spread over its grid; not the last, which may be ragged
MATRIX_FLOPS = 2 * 16 * 8 * 16  # of an mma.m16n8k16
COUNTED = "barriers global_read global_written sectors_read sectors_written matrix_products bank_conflicts".split()
TYPES = {"f": "float", "d": "double"}


@dataclass
class Kernel:
    """One launch, scaled up from its sample. Bytes are those asked for, ``sectors`` bytes of 32-byte sectors."""

    name: str
    blocks: int
    threads: int
    shared_bytes: int
    instructions: int
    double_instructions: int
    counts: dict[str, int] = field(default_factory=dict)
    product: tuple[int, ...] = ()  # rows, depth, columns of one left to torch (cuBLAS); nothing of it is counted


PRODUCT = "torch.mm"


def short_name(symbol: str) -> str:
    """A kernel's own name and type in nvcc's spelling of both."""
    found = re.search(r"(?:_GLOBAL__N_1|cuda)\d+([a-z_]+)I(?:NS_\d+)?(BFloat16|Half|f|d)", symbol)
    if not found:
        return symbol
    return f"{found[1]}<{TYPES.get(found[2], found[2])}>"


def kernels(emulator: PtxEmulator) -> list[Kernel]:
    """What was launched since the last reset."""
    return [
        Kernel(
            short_name(launch.kernel),
            launch.blocks,
            launch.threads,
            launch.shared_bytes,
            launch.instructions,
            sum(times for opcode, times in launch.opcodes.items() if "f64" in opcode.split(".")),
            {name: launch.counters[name] for name in COUNTED},
        )
        for launch in emulator.launches
    ] + [Kernel(PRODUCT, 0, 0, 0, 0, 0, dict.fromkeys(COUNTED, 0), sizes) for sizes in products(emulator)]


def products(emulator: PtxEmulator) -> Iterator[tuple[int, ...]]:
    """Those that were left to torch since the last reset."""
    sizes = (ctypes.c_int64 * 3)()
    for number in itertools.count():
        if not emulator.library.simt_product(ctypes.c_int64(number), sizes):
            return
        yield tuple(sizes)


def measured(emulator: PtxEmulator, case: BenchCase, sample: int = SAMPLE) -> dict[str, list[Kernel]]:
    """Direction -> launches of ``case`` by petx."""
    torch.manual_seed(0)
    problem = case.make(case, "cpu")
    [arm] = [arm for arm in case.arms if arm.name == PETX]
    forward, leaves = arm.build(case, problem)
    activations = problem.fresh()
    leaves = [*leaves, *(t for t in activations.values() if t.requires_grad)]
    emulator.sample, emulator.order = sample, "ascending"
    emulator.library.simt_set_watching(1)
    found = {}
    try:
        with in_place_of_cpu_kernels(emulator):
            emulator.reset()
            results = forward(activations)
            found["fwd"] = kernels(emulator)
            emulator.reset()
            differentiable = [y for y in results if y.requires_grad]
            torch.autograd.grad(differentiable, leaves, [torch.ones_like(y) for y in differentiable], allow_unused=True)
            found["bwd"] = kernels(emulator)
    finally:
        emulator.sample = 0
        emulator.library.simt_set_watching(0)
    return found


def totals(launches: list[Kernel]) -> dict[str, int]:
    """Sums over the launches of one direction."""
    found = {"launches": len(launches), "instructions": sum(kernel.instructions for kernel in launches)}
    for name in COUNTED:
        found[name] = sum(kernel.counts[name] for kernel in launches)
    return found


def described(launches: list[Kernel]) -> list[dict]:
    return [asdict(kernel) for kernel in launches]
