"""Figures of the whole process: how long the import takes, how large the wheel is, how long it takes to build."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from petx.bench.case import Unavailable

IMPORT = """
from time import perf_counter as now
start = now()
import torch
middle = now()
import petx
print(middle - start, now() - middle)
"""


def import_seconds(rounds: int = 5) -> dict[str, float]:
    """Medians over new processes: importing torch, and petx on top of it."""
    pairs = []
    for _ in range(rounds + 1):
        command = [sys.executable, "-P", "-c", IMPORT]
        run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True)
        pairs.append([float(value) for value in run.stdout.split()])
    torch_alone, over_torch = zip(*pairs[1:], strict=True)  # the first reads the files into memory
    return {"torch": statistics.median(torch_alone), "petx over torch": statistics.median(over_torch)}


def wheel(source: str | Path | None = None) -> dict[str, float]:
    """Bytes of the wheel and seconds of its build from ``source``, the clone that this package lies in.

    Raises Unavailable if petx is not run from a clone, or the build fails.
    """
    source = Path(source or Path(__file__).parents[2])
    if not (source / "pyproject.toml").is_file() or not (source / "csrc").is_dir():
        raise Unavailable("petx was not started from a clone of its sources")
    with tempfile.TemporaryDirectory() as scratch:
        copy, out = Path(scratch, "source"), Path(scratch, "wheel")
        copy.mkdir()
        for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md", "MANIFEST.in"):
            (copy / name).write_bytes((source / name).read_bytes())
        for name in ("petx", "csrc", "buildtools"):  # without what an earlier build left, so that all is compiled
            for file in (source / name).rglob("*"):
                if file.is_file() and file.suffix not in (".so", ".pyc"):
                    target = copy / file.relative_to(source)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(file.read_bytes())
        command = [
            sys.executable,
            "-P",
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "-q",
            "-w",
            str(out),
            str(copy),
        ]
        start = time.perf_counter()
        run = subprocess.run(command, capture_output=True, text=True, errors="replace")
        seconds = time.perf_counter() - start
        if run.returncode:
            raise Unavailable(f"the build failed: {(run.stderr.strip() or 'no message').splitlines()[-1][:160]}")
        return {"bytes": next(out.glob("*.whl")).stat().st_size, "build_seconds": seconds}
