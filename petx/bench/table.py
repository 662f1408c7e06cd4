"""Which cases a set has: the published shapes, on a CPU scaled down, in every dtype; and the sweeps of one size.

Operations are found by name below :mod:`petx.bench.ops`.
"""

import torch

from petx import _rooms
from petx.bench import layers
from petx.bench.case import BenchCase, Shapes

HALF_ON_CPU = "float16 is listed for the record; compiling it takes longer than all else of the case"
QUICK = "--quick compiles float32 only"


def cases(device: str, quick: bool = False) -> list[BenchCase]:
    """The cases for ``device`` ("cpu" or "cuda"), the quick ones first: if the time ends early, they are done."""
    gpu = device == "cuda"
    listed = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        half = dtype == torch.float16 and not gpu
        left_out = quick and dtype != torch.float32
        options = dict(compile_best=not (half or left_out), why_not=HALF_ON_CPU if half else QUICK)
        shapes = Shapes(dtype, gpu, main_only=half, quick=not half, options=options)
        for operation in _rooms.modules("petx.bench.ops").values():
            listed += operation.cases(shapes)
        listed += layers.cases(dtype)
    if quick:
        return [case for case in listed if case.quick]
    return sorted(listed, key=lambda case: not case.quick)


def sweeps(device: str, quick: bool) -> list[tuple[str, str, list[BenchCase]]]:
    """(operation, size's name, cases) of which only one size grows; by petx and the best eager form, in float32. The
    quick ones are those over the number of tokens, N."""
    factor = 8 if device == "cuda" else 1
    listed = [
        (name, size, swept)
        for name, operation in _rooms.modules("petx.bench.ops").items()
        for size, swept in operation.sweeps(factor)
    ]
    listed.sort(key=lambda sweep: sweep[1] != "N")  # first, as they are in the quick set
    return [sweep for sweep in listed if sweep[1] == "N"] if quick else listed
