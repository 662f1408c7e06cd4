"""What a kernel may cost: rules that hold for all, and each kernel's committed counts."""

import functools
import json
from pathlib import Path

from petx.bench.case import BenchCase
from tests.emulator.cost.counting import Kernel, measured, short_name
from tests.emulator.cost.registers import registers, resident
from tests.emulator.cost.shapes import published, small
from tests.emulator.ptx import PtxEmulator, build

TABLE = Path(__file__).with_name("table.json")  # every operation at 1,024 tokens
PUBLISHED = Path(__file__).with_name("published.json")  # the published shapes
MOST_ABOVE = 1.05  # of the committed counts
SECTORS = 1.1  # bytes of the sectors written, by the bytes written
BLOCKS = 128  # at 1,024 tokens, of 132 multiprocessors
MATTERS = 0.1  # share of a call's instructions from which a kernel has to fill the card
NARROW = ("BFloat16", "Half", "float")


LIMITED = ("instructions", "matrix_products", "barriers", "bytes_asked", "sectors")
HELD = ("kernel", "blocks", "threads", *LIMITED, "registers", "blocks_of_multiprocessor")


def broken(counted: dict[str, list[Kernel]], filled: bool = True) -> set[str]:
    """The rules that a call breaks: "direction kernel: rule"; ``filled`` if that of the blocks is one of them."""
    found = set()
    for direction, kernels in counted.items():
        whole = sum(kernel.instructions for kernel in kernels)
        for kernel in kernels:
            counts = kernel.counts
            for broken, rule in (
                (counts["sectors_written"] > SECTORS * counts["global_written"], "partial sectors written"),
                (counts["bank_conflicts"] > 0, "bank conflicts"),
                (
                    filled and kernel.blocks < BLOCKS and kernel.instructions >= MATTERS * whole,
                    f"under {BLOCKS} blocks",
                ),
            ):
                if broken:
                    found.add(f"{direction} {kernel.name}: {rule}")
    return found


@functools.cache
def with_doubles() -> dict[str, int]:
    """Kernels of narrower types that have double-precision instructions, and how many."""
    found = {}
    for name, entry in build.kernels_of().items():
        doubles = sum("f64" in opcode.split(".") for opcode in entry.opcodes())
        if doubles and any(f"<{type_}>" in short_name(name) for type_ in NARROW):
            found[short_name(name)] = doubles
    return found


def held(counted: dict[str, list[Kernel]]) -> dict[str, list[dict]]:
    """What the table keeps of a call."""
    known = registers()
    return {
        direction: [
            {
                "kernel": kernel.name,
                "blocks": kernel.blocks,
                "threads": kernel.threads,
                "instructions": kernel.instructions,
                "matrix_products": kernel.counts["matrix_products"],
                "barriers": kernel.counts["barriers"],
                "bytes_asked": kernel.counts["global_read"] + kernel.counts["global_written"],
                "sectors": kernel.counts["sectors_read"] + kernel.counts["sectors_written"],
                "registers": known[kernel.name],
                "blocks_of_multiprocessor": resident(known[kernel.name], kernel.threads, kernel.shared_bytes),
            }
            if not kernel.product
            else dict.fromkeys(HELD, 0) | {"kernel": kernel.name, "product": list(kernel.product)}
            for kernel in kernels
        ]
        for direction, kernels in counted.items()
    }


def dearer(now: dict[str, list[dict]], before: dict[str, list[dict]]) -> list[str]:
    """Where a call costs more than the table says."""
    found = []
    for direction, kernels in now.items():
        listed = before[direction]
        if len(kernels) > len(listed):
            found.append(f"{direction}: {len(kernels)} launches, not {len(listed)}")
        for name in LIMITED:
            got, limit = (sum(kernel[name] for kernel in several) for several in (kernels, listed))
            if got > MOST_ABOVE * limit:
                found.append(f"{direction}: {got:,} {name}, {got / limit:.2f} of the table's {limit:,}")
        residents = {kernel["kernel"]: kernel["blocks_of_multiprocessor"] for kernel in listed}
        for kernel in kernels:
            if kernel["blocks_of_multiprocessor"] < residents.get(kernel["kernel"], 0):
                found.append(f"{direction}: {kernel['kernel']} has {kernel['registers']} registers: fewer blocks fit")
    return found


def renewed(path: Path, emulator: PtxEmulator, cases: list[BenchCase]) -> str:
    """A table's text with those cases' rows for the kernels as they are; the others' are kept."""
    known = {case.label for case in [*small(), *published()]}
    kept = json.loads(path.read_text()) | {case.label: held(measured(emulator, case)) for case in cases}
    return json.dumps({label: rows for label, rows in kept.items() if label in known}, indent=1) + "\n"
