"""Cases of `cp_reconstruct`, PETAL's adapted weights written out."""

from dataclasses import dataclass
from typing import Any

import torch

from petx import reference
from petx.bench.case import BenchCase
from petx.certify.cases.case import WIDE, Case, Results, Tensors, Trial


@dataclass(frozen=True)
class ReconstructCase(Case):
    """Weight k is the tensor ``weight k``; the factors come first, so that a test has one to differentiate."""

    operation = "cp_reconstruct"

    def mean_of(self, name: str) -> float:
        return 0.2 if name == "threshold" else 0.0

    @staticmethod
    def arguments(tensors: Tensors) -> dict[str, Any]:
        return {
            "weights": [t for name, t in tensors.items() if name.startswith("weight ")],
            **{name: tensors.get(name) for name in ("u", "v", "cores", "threshold")},
        }

    def call(self, tensors: dict[str, Any], extras: Tensors) -> Results:
        return super().call(self.arguments(tensors), extras)

    def expected(self, tensors: Tensors) -> Results:
        return reference.cp_reconstruct(**self.arguments(tensors), **self.options)


def reconstruct(
    name: str,
    modules: int = 2,
    d_out: int = 24,
    d_in: int = 40,
    rank: int = 6,
    *,
    core: str = "full",
    threshold: int = 1,
    **options: Any,
) -> ReconstructCase:
    """K weights that share factors; ``threshold`` is the number of thresholds of a gate."""
    shapes: dict[str, tuple[int, ...]] = {"u": (rank, d_in), "v": (d_out, rank)}
    shapes["cores"] = (modules, rank, rank) if core == "full" else (modules, rank)
    if options.get("gate", "none") != "none":
        shapes["threshold"] = (threshold,)
    return ReconstructCase(name, shapes | {f"weight {k}": (d_out, d_in) for k in range(modules)}, options)


SIGMOID: dict[str, Any] = dict(gate="sigmoid", temperature=0.15)


CERTIFIED = [
    Trial(reconstruct("none", scale=-0.25)),
    Trial(reconstruct("soft", gate="soft"), each_gradient=True),
    Trial(reconstruct("hard", gate="hard", threshold=2)),
    Trial(reconstruct("sigmoid-each", modules=3, gate="sigmoid", threshold=3, scale=-1.5), each_gradient=True),
    Trial(reconstruct("diagonal-sigmoid", core="diagonal", gate="sigmoid", threshold=2, scale=0.5)),
    Trial(reconstruct("one-value", modules=1, d_out=1, d_in=1, rank=1, gate="soft")),
    Trial(reconstruct("misaligned", d_out=40, d_in=72, rank=16, gate="soft"), misaligned=True),
    Trial(reconstruct("many", modules=13, d_out=16, d_in=16, rank=4, threshold=13, gate="soft")),
    Trial(reconstruct("wide", d_out=72, d_in=136, rank=72, threshold=2, **SIGMOID)),
    Trial(reconstruct("wide-diagonal", d_out=65, d_in=129, rank=40, core="diagonal", gate="hard")),
    Trial(reconstruct("strips", modules=3, d_out=72, d_in=136, rank=40, threshold=3, **SIGMOID), environment=WIDE[2]),
    Trial(reconstruct("strips-odd", d_out=67, d_in=83, rank=13, gate="soft"), misaligned=True, environment=WIDE[2]),
]

# Rows are d_out, the width is d_in, of twelve modules that share factors.
SHAPES = [(256, 256, 16), (768, 768, 16), (768, 768, 64), (2048, 2048, 64)]


def timed(rows: int, width: int, rank: int, dtype: torch.dtype) -> BenchCase:
    from petx.bench.ops.cp_reconstruct import case as benchmark

    return benchmark(12, dtype, "certify", d_out=rows, d_in=width, rank=rank)
