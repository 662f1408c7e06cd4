"""Cases of `mode_cores`, the cores of all mode vectors."""

from dataclasses import dataclass
from typing import Any

import torch

from petx import reference
from petx.bench.case import BenchCase
from petx.certify.cases.case import Case, Results, Tensors, Trial


@dataclass(frozen=True)
class CoresCase(Case):
    operation = "mode_cores"

    def mean_of(self, name: str) -> float:
        return 0.2 if name == "threshold" else 0.0

    def call(self, tensors: dict[str, Any], extras: Tensors) -> Results:
        return super().call({"threshold": None} | tensors, extras)

    def expected(self, tensors: Tensors) -> Results:
        arguments: dict[str, Any] = {**tensors, **self.options}
        return reference.mode_cores(**arguments)


def cores(
    name: str, count: int = 9, rank: int = 6, *, core: str = "full", threshold: int = 1, **options: Any
) -> CoresCase:
    """``count`` mode vectors; ``threshold`` is the number of thresholds of a gate."""
    shapes = {"core": (rank,) * (3 if core == "full" else 1), "modes": (count, rank)}
    if options.get("gate", "none") != "none":
        shapes["threshold"] = (threshold,)
    return CoresCase(name, shapes, options)


SIGMOID: dict[str, Any] = dict(gate="sigmoid", temperature=0.15)


CERTIFIED = [
    Trial(cores("none")),
    Trial(cores("soft", gate="soft"), each_gradient=True),
    Trial(cores("hard-each", gate="hard", threshold=6)),
    Trial(cores("sigmoid-each", **SIGMOID, threshold=6)),
    Trial(cores("diagonal", core="diagonal")),
    Trial(cores("diagonal-sigmoid-each", core="diagonal", **SIGMOID, threshold=6), each_gradient=True),
    Trial(cores("one-value", count=1, rank=1, gate="soft")),
    Trial(cores("odd", count=7, rank=13, gate="soft", threshold=13), misaligned=True),
    Trial(cores("wide", count=66, rank=17, gate="hard", threshold=17)),
    Trial(cores("splits", count=5, rank=34, gate="soft")),
    Trial(cores("wide-none", count=66, rank=24)),
]

# Rows are those of the core as a matrix, R^2 by R: what its tensor tells.
SHAPES = [(256, 16, 16), (1024, 32, 32), (4096, 64, 64), (16384, 128, 128)]


def timed(rows: int, width: int, rank: int, dtype: torch.dtype) -> BenchCase:
    from petx.bench.ops.mode_cores import case as benchmark

    return benchmark(36, dtype, "certify", rank=rank)
