"""Registers of each kernel by ptxas, and how many of its blocks a multiprocessor of an H100 holds."""

import re
from pathlib import Path

from tests.emulator.cost.counting import short_name
from tests.emulator.ptx import build
from tests.emulator.ptx.text import common_name

ARCHITECTURE = "sm_90"
# Of a multiprocessor of compute capability 9.0 (CUDA programming guide, technical specifications).
REGISTERS, WARP_STEP, THREADS, SHARED, SHARED_OF_SYSTEM, MOST_BLOCKS = 65_536, 256, 2_048, 228 * 1024, 1024, 32


def registers() -> dict[str, int]:
    """Kernel -> registers of a thread."""
    found: dict[str, int] = {}
    for source in build.sources():
        for symbol, count in of_file(build.ptx_of(source)).items():
            found[short_name(common_name(symbol))] = count
    return found


def of_file(ptx: Path) -> dict[str, int]:
    pattern = r"Compiling entry function '(\w+)'.*?Used (\d+) registers"
    _, said = build.assembled(ptx, ARCHITECTURE)
    return {name: int(count) for name, count in re.findall(pattern, said, re.DOTALL)}


def resident(registers: int, threads: int, shared_bytes: int) -> int:
    """Blocks that a multiprocessor holds at a time."""
    warps = threads // 32
    by_registers = REGISTERS // (-(-registers * 32 // WARP_STEP) * WARP_STEP * warps)
    by_shared = SHARED // (shared_bytes + SHARED_OF_SYSTEM)
    return min(MOST_BLOCKS, by_registers, by_shared, THREADS // threads)
