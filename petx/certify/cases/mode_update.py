"""Cases of `mode_update`, PETAL's update beside K projections of one input."""

from dataclasses import dataclass
from typing import Any

import torch

from petx import reference
from petx.bench.case import BenchCase
from petx.certify.cases.case import ONE_SHARE, WIDE, Case, Device, Results, Tensors, Trial

DROPOUT_SEED = (5 << 40) + 20_231_215  # both words count


@dataclass(frozen=True)
class ModeCase(Case):
    """Base k is the tensor ``base k``. ``beside``: the call gets them as columns of one tensor."""

    beside: bool = False
    operation = "mode_update"
    ACTIVATIONS = ("x", "base 0", "base 1", "base 2", "base 3")

    def extras(self, device: Device = "cpu") -> Tensors:
        return {"seed": torch.tensor([DROPOUT_SEED], device=device)}

    def arguments(self, tensors: Tensors) -> dict[str, Any]:
        bases = [t for name, t in tensors.items() if name.startswith("base ")]
        if self.beside:
            bases = list(torch.cat(bases, -1).split(bases[0].shape[-1], -1))
        return {name: tensors.get(name) for name in ("x", "u", "v", "cores")} | {"bases": bases or None}

    def call(self, tensors: dict[str, Any], extras: Tensors) -> Results:
        return super().call(self.arguments(tensors), extras)

    def expected(self, tensors: Tensors) -> Results:
        arguments, shape = self.arguments(tensors) | self.extras(tensors["x"].device), self.shapes["x"]
        arguments["x"] = tensors["x"].reshape(-1, shape[-1])
        if arguments["bases"]:
            arguments["bases"] = [base.reshape(-1, base.shape[-1]) for base in arguments["bases"]]
        results = reference.mode_update(**arguments, **self.options)
        return tuple(y.reshape(*shape[:-1], y.shape[-1]) for y in results)


def modes(
    name: str,
    batch: tuple[int, ...] = (3, 5),
    d_in: int = 24,
    d_out: int = 20,
    rank: int = 8,
    count: int = 3,
    *,
    core: str = "full",
    u: bool = True,
    bases: bool = True,
    beside: bool = False,
    **options: Any,
) -> ModeCase:
    """``count`` projections of one input; without ``u`` the input comes projected."""
    shapes = {"x": (*batch, d_in if u else rank)}
    if u:
        shapes["u"] = (rank, d_in)
    shapes |= {"v": (d_out, rank), "cores": (count, rank, rank) if core == "full" else (count, rank)}
    if bases:
        shapes |= {f"base {k}": (*batch, d_out) for k in range(count)}
    return ModeCase(name, shapes, options, beside=beside)


CERTIFIED = [
    Trial(modes("one", count=1)),
    Trial(modes("four", count=4)),
    Trial(modes("dropout", dropout=0.1), each_gradient=True),
    Trial(modes("dropout-shared-diagonal", core="diagonal", dropout=0.5, shared_mask=True), each_gradient=True),
    Trial(modes("alone", bases=False)),
    Trial(modes("beside", batch=(2, 33), d_out=40, beside=True, dropout=0.1)),
    Trial(modes("projected", u=False, count=2, dropout=0.1)),
    Trial(modes("one-token", batch=(1, 1), dropout=0.1)),
    Trial(modes("misaligned", batch=(2, 33), d_in=72, d_out=64, rank=16, dropout=0.1), misaligned=True),
    Trial(modes("odd", batch=(3, 43), d_in=37, d_out=35, rank=5, dropout=0.1)),
    Trial(modes("wide", batch=(1, 70), d_in=131, d_out=67, rank=65, count=2, dropout=0.1, shared_mask=True)),
    Trial(modes("one-share", batch=(1, 70), d_in=150, d_out=140, rank=9, count=2, dropout=0.1), environment=ONE_SHARE),
    Trial(modes("deep", batch=(70,), d_in=331, d_out=643, rank=66, count=2, dropout=0.1)),
    Trial(modes("splits", batch=(5, 113), d_in=24, d_out=20, rank=8, dropout=0.1)),
    Trial(modes("tall", batch=(1, 150), d_in=136, d_out=144, rank=72, count=2), environment=WIDE[2]),
    Trial(modes("tall-deep", batch=(1, 150), d_in=72, d_out=643, rank=40, count=2, dropout=0.1), environment=WIDE[2]),
    Trial(modes("tall-odd", batch=(1, 131), d_in=37, d_out=131, rank=99, dropout=0.1), environment=WIDE[3]),
]

# The frozen projections' outputs are given; rows are tokens, the width is d_in and d_out.
SHAPES = [(256, 768, 64), (1024, 768, 64), (4112, 768, 64), (16384, 768, 64), (1024, 2048, 32), (8192, 4096, 64)]


def timed(rows: int, width: int, rank: int, dtype: torch.dtype) -> BenchCase:
    from petx.bench.ops.mode_update import case as benchmark

    return benchmark(rows, dtype, "certify", d_in=width, d_out=width, rank=rank)
