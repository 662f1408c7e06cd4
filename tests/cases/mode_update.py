"""Cases of `mode_update`, PETAL's update beside K projections of one input."""

from dataclasses import dataclass

import torch

from petx import reference
from tests.cases.case import Case

DROPOUT_SEED = 20_231_215


@dataclass(frozen=True)
class ModeCase(Case):
    """Base k is the tensor ``base k``."""

    operation = "mode_update"
    ACTIVATIONS = ("x", "base 0", "base 1", "base 2", "base 3")

    def extras(self, device="cpu"):
        return {"seed": torch.tensor([DROPOUT_SEED], device=device)}

    @staticmethod
    def arguments(tensors):
        bases = [t for name, t in tensors.items() if name.startswith("base ")]
        return {name: tensors.get(name) for name in ("x", "u", "v", "cores")} | {"bases": bases or None}

    def call(self, tensors, extras):
        return super().call(self.arguments(tensors), extras)

    def expected(self, tensors):
        arguments, shape = self.arguments(tensors), self.shapes["x"]
        arguments["x"] = tensors["x"].reshape(-1, shape[-1])
        if arguments["bases"]:
            arguments["bases"] = [base.reshape(-1, base.shape[-1]) for base in arguments["bases"]]
        results = reference.mode_update(**arguments, **self.extras(tensors["x"].device), **self.options)
        return tuple(y.reshape(*shape[:-1], y.shape[-1]) for y in results)


def modes(name, batch=(3, 5), d_in=24, d_out=20, rank=8, count=3, *, core="full", u=True, bases=True, **options):
    """``count`` projections of one input; without ``u`` the input comes projected."""
    shapes = {"x": (*batch, d_in if u else rank)}
    if u:
        shapes["u"] = (rank, d_in)
    shapes |= {"v": (d_out, rank), "cores": (count, rank, rank) if core == "full" else (count, rank)}
    if bases:
        shapes |= {f"base {k}": (*batch, d_out) for k in range(count)}
    return ModeCase(name, shapes, options)


CASES = [
    modes("one", count=1),
    modes("two", count=2),
    modes("three"),
    modes("four", count=4),
    modes("diagonal", core="diagonal"),
    modes("alone", bases=False),
    modes("diagonal-alone", core="diagonal", bases=False, count=2),
    modes("projected", u=False, count=2),
    modes("projected-diagonal", u=False, core="diagonal", bases=False),
    # dropout
    modes("dropout", dropout=0.1),
    modes("dropout-0.9", dropout=0.9),
    modes("dropout-shared", dropout=0.5, shared_mask=True),
    modes("dropout-diagonal", core="diagonal", dropout=0.1),
    modes("dropout-shared-diagonal", core="diagonal", dropout=0.5, shared_mask=True),
    modes("dropout-projected", u=False, dropout=0.1, count=2),
    # odd sizes: widths that no vector divides, one token, rows that straddle blocks and splits
    modes("square", d_in=24, d_out=24),
    modes("one-token", batch=(1, 1), dropout=0.1),
    modes("vector", batch=(), dropout=0.1),
    modes("four-dims", batch=(2, 3, 4)),
    modes("odd", batch=(3, 43), d_in=37, d_out=35, rank=5, dropout=0.1),
    modes("odd-shared", batch=(3, 43), d_in=37, d_out=35, rank=5, dropout=0.1, shared_mask=True),
    modes("odd-diagonal", batch=(3, 43), d_in=35, d_out=37, rank=7, core="diagonal", dropout=0.1),
    modes("rank-one", batch=(2, 20), rank=1, dropout=0.5),
    modes("narrow", batch=(2, 20), d_in=1, d_out=1, rank=3),
    modes("few-rows", batch=(2, 33), d_in=133, d_out=130, rank=66, dropout=0.1),
    modes("splits", batch=(13, 97), d_in=40, d_out=36, rank=16, dropout=0.1),
    modes("splits-shared", batch=(13, 97), d_in=40, d_out=36, rank=15, dropout=0.1, shared_mask=True, count=2),
    modes("splits-diagonal", batch=(13, 97), d_in=40, d_out=36, rank=16, core="diagonal", dropout=0.1),
]

TINY = dict(batch=(2, 2), d_in=3, d_out=4, rank=2)
GRADCHECKED = [
    modes("full", **TINY),
    modes("dropout", **TINY, dropout=0.5),
    modes("shared", **TINY, dropout=0.5, shared_mask=True, count=2),
    modes("diagonal", **TINY, core="diagonal", dropout=0.5, count=4),
    modes("projected", **TINY, u=False, bases=False, count=2),
]

WIDE = [
    modes("wide", batch=(2, 35), d_in=200, d_out=136, rank=72, dropout=0.1),
    modes("wide-odd", batch=(1, 67), d_in=131, d_out=67, rank=65, count=2, dropout=0.1, shared_mask=True),
    modes("wide-diagonal", batch=(2, 35), d_in=136, d_out=200, rank=136, core="diagonal", dropout=0.1),
    modes("wide-projected", batch=(2, 65), d_out=131, rank=80, u=False, count=4),
    # 192 tiles of results for 128 blocks of the CUDA forward, one of which has tiles of two projections
    modes("wide-shares", batch=(2,), d_in=3, d_out=4037, rank=3, dropout=0.1),
    modes("wide-alone", batch=(2, 65), d_in=72, d_out=72, rank=64, bases=False, count=1),
]

FEW = """one three diagonal alone projected dropout dropout-shared dropout-shared-diagonal one-token odd splits
splits-shared""".split()
