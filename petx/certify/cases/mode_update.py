"""Cases of `mode_update`, PETAL's update beside K projections of one input."""

from dataclasses import dataclass

import torch

from petx import reference
from petx.certify.cases.case import Case

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
