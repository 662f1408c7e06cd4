"""Removes or spoils one line of the CUDA kernels at a time and asks whether the tests notice.

    python -m tests.emulator.mutants

A mutant that survives is a hole in the tests (exit code 1). Takes about fifteen seconds a mutant on two cores.
"""

import re
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from tests.cases.gated_adapter import BART_TAIL, site
from tests.cases.gated_adapter import CASES as TABLE
from tests.checks import outputs_and_grads, wrong
from tests.emulator import CSRC, Emulator, KernelFault, build_kernels
from tests.emulator.operations import in_place_of_cpu_kernels

BY_NAME = {case.name: case for case in TABLE}

CASES = [
    site("wide-odd", batch=(1, 67), d=131, r=67, r_g=65, granularity="large", **BART_TAIL),
    site("wide", batch=(1, 70), d=136, r=72, r_g=72, granularity="large", **BART_TAIL),
    BY_NAME["pair"],
    BY_NAME["small-masked"],
    BY_NAME["middleX-bart"],
    BY_NAME["middleY-sigmoid"],
    BY_NAME["parallel-large-wide-x"],
    BY_NAME["splits"],
]

# File, pattern, replacement: besides these, every barrier is taken out in turn.
SPOILED = [
    ("mma_tile.cuh", r"wait_copies<1>\(\)", "wait_copies<2>()"),
    ("mma_tile.cuh", r"wait_copies<0>\(\)", "wait_copies<1>()"),
    ("mma_tile.cuh", r"commit_copies\(\);", ";"),
    ("mma_tile.cuh", r"stage\(\(chunk \+ 1\) % 2", "stage(chunk % 2"),
    ("mma_tile.cuh", r"pack \^ line % 8", "pack"),
    ("mma_tile.cuh", r"columns\[0\], columns\[1\]", "columns[1], columns[0]"),
    ("mma_tile.cuh", r"aligned && line < lines", "aligned"),
    ("mma_tile.cuh", r"\(pack \+ 1\) \* kPack <= length", "pack * kPack < length"),
    ("mma_tile.cuh", r"line < lines && pack \* kPack \+ u < length", "line < lines"),
    ("mma_tile.cuh", r"lane / 4 \+ e / 2 \* 8", "lane / 4 + e % 2 * 8"),
    ("fma_tile.cuh", r"k0 \+ k < depth \? from\(i, k0 \+ k\) : C\(0\)", "k0 + k <= depth ? from(i, k0 + k) : C(0)"),
    ("operand.cuh", r"if \(i >= count\) return Compute<T>\(0\);", ""),
    ("gated_adapter_site.cuh", r"if \(!valid\(\)\) return;", ""),
    ("gated_adapter_site.cuh", r"begin \+ c < end", "begin + c <= end"),
    ("gated_adapter_site.cuh", r"value \+= shuffle_xor\(value, 1\);", ""),
    ("gated_adapter_site.cuh", r"!only_counting \|\| counts", "only_counting || counts"),
    ("gated_adapter_site.cuh", r"head \* rank\)", "0)"),
    ("token_sums.cuh", r"group \* grad.n \+ column, b_width", "column, b_width"),
    ("token_sums.cuh", r"part < job.parts", "part + 1 < job.parts"),
]


def mutants():
    """(file, text of the change, new contents)."""
    for path in sorted(CSRC.glob("cuda/*.cu*")):
        if path.name == "primitives.cuh":
            continue
        text = path.read_text()
        for found in re.finditer(r"\bsync_block\(\);", text):
            line = text.count("\n", 0, found.start()) + 1
            yield path, f"line {line}: no sync_block()", text[: found.start()] + ";" + text[found.end() :]
    for name, pattern, replacement in SPOILED:
        path = CSRC / "cuda" / name
        text, count = re.subn(pattern, replacement, path.read_text(), count=1)
        assert count, f"{name} has no {pattern} to spoil"
        yield path, f"{pattern} -> {replacement}", text


def verdict(emulator):
    """How the tests notice this build, or None where they do not."""
    for dtype in (torch.bfloat16, torch.float32):
        for case in CASES:
            emulator.library.simt_reset_counters()
            tensors = case.inputs(dtype)
            try:
                said = wrong(outputs_and_grads(case.run, tensors), case, tensors)
            except KernelFault as fault:
                return str(fault).partition("\n")[0]
            if said:
                return f"{case}: {said}"
            if emulator.counters().bank_conflicts:
                return f"{emulator.counters().bank_conflicts} bank conflicts"
    return None


def main():
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, (path, change, text) in enumerate([(CSRC / "none", "nothing", ""), *mutants()]):
            csrc = Path(folder, f"csrc{number}")
            shutil.copytree(CSRC, csrc)
            if number:
                (csrc / "cuda" / path.name).write_text(text)
            emulator = Emulator(build_kernels(Path(folder, f"{number}.so"), csrc))
            emulator.order = "random-1"
            with in_place_of_cpu_kernels(emulator):
                said = verdict(emulator)
            survivors += (said is None) == (number > 0)
            print(f"{path.name}: {change}: {said or 'NOT NOTICED' if number else said or 'passes'}", flush=True)
            shutil.rmtree(csrc)
    print(f"{survivors} survivors" if survivors else "every mutant is noticed")
    return survivors > 0


if __name__ == "__main__":
    sys.exit(main())
