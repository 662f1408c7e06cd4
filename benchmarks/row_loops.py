"""Instructions that the row loops of VL-PET's site execute for each value on a CPU, counted by valgrind's callgrind.

    python -m benchmarks.row_loops

compiles row_loops.cpp with the sources of the library, and prints the table of docs/benchmarks.md: float32, AVX2, the
difference of 72 rows and 8. It needs valgrind and a CPU with AVX2.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from buildtools.compile import FLAGS

ROOT = Path(__file__).parents[1]
WIDTH, MANY, FEW = 768, 72, 8
# A column of the table: its title, and what its loops are called with.
COLUMNS = {"BART: dropout, residual, norm": ("tail", "norm"), "T5: dropout, residual": ("tail", "t5")}


def compiled(folder: Path) -> Path:
    """The program, made in ``folder``."""
    program, csrc = folder / "row_loops", ROOT / "csrc"
    sources = [Path(__file__).with_suffix(".cpp"), csrc / "cpu/common/vectors.cpp"]
    compiler = os.environ.get("CXX", "c++").split()
    subprocess.run([*compiler, *FLAGS, f"-I{csrc}", *sources, "-o", program], check=True)
    return program


def executed(program: Path, what: str, rows: int) -> int:
    tool = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    done = subprocess.run([*tool, program, what, str(rows)], capture_output=True, text=True, check=True)
    return int(re.search(r"Collected : (\d+)", done.stderr)[1])


def per_value(program: Path, *words: str) -> float:
    """Instructions for each of a row's values, less those of a program that calls no loop."""
    loops, nothing = "-".join(words), "-".join(["none", *(word for word in words if word == "t5")])
    counts = [executed(program, what, MANY) - executed(program, what, FEW) for what in (loops, nothing)]
    return (counts[0] - counts[1]) / (MANY - FEW) / WIDTH


def column(program: Path, tail: tuple[str, ...]) -> dict[str, str]:
    """The rows of the table for a site with ``tail``."""
    host = tuple(word for word in tail if word == "t5")
    mask, gate = per_value(program, "mask", *host), per_value(program, "forward", *host)
    summed = per_value(program, "forward", "tail", *host)
    whole = per_value(program, "forward", *tail)
    act, slope = per_value(program, "activation", *host), per_value(program, "recomputed", "derivative", *host)
    return {
        "forward": f"{whole:.1f}",
        "of these the dropout mask": f"{mask:.1f}",
        "gate and scale": f"{gate:.1f}",
        "residual, mask's product": f"{summed - mask - gate:.1f}",
        "norm": f"{whole - summed:.1f}" if "norm" in tail else "-",
        "backward": f"{per_value(program, 'backward', *tail):.1f}",
        "activations of r = 96 or 192: forward; recomputed, and their derivative": f"{act:.1f}; {slope:.1f}",
    }


def table(program: Path) -> str:
    columns = [column(program, tail) for tail in COLUMNS.values()]
    lines = [f"| | {' | '.join(COLUMNS)} |", f"| --- |{' ---: |' * len(COLUMNS)}"]
    return "\n".join([*lines, *(f"| {row} | {' | '.join(one[row] for one in columns)} |" for row in columns[0])])


def main() -> int:
    if not shutil.which("valgrind"):
        print("row_loops: valgrind is not installed", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        print(table(compiled(Path(folder))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
