"""PETAL's cores: the tensor core contracted with every mode vector."""

from typing import Any

import torch
import torch.nn.functional as F

from petx import functional
from petx.bench.case import PRODUCTS, Arm, BenchCase, Shapes, Sweep, Tensors, problem, unavailable
from petx.bench.peers import arms, without_lora
from petx.bench.products import alone


def cases(shapes: Shapes) -> list[BenchCase]:
    return [case(54, shapes.dtype, "qformer", quick=shapes.dtype == torch.float32, **shapes.options)]


def sweeps(factor: int) -> list[Sweep]:
    return []


def case(
    modes: int,
    dtype: torch.dtype,
    name: str,
    *,
    rank: int = 64,
    diagonal: bool = False,
    quick: bool = False,
    **more: Any,
) -> BenchCase:
    """The cores C x₃ p of every mode vector p, or of a diagonal C their diagonals; reads the core once."""
    size, shape = dtype.itemsize, (rank,) * (1 if diagonal else 3)
    core, made = rank ** len(shape), modes * rank ** (1 if diagonal else 2)
    return BenchCase(
        "mode_cores",
        name,
        dtype,
        dict(modes=modes, R=rank) | (dict(core="diagonal") if diagonal else {}),
        lambda made, device: problem(made, device, {"core": shape, "modes": (modes, rank)}, {}),
        arms(
            literal,
            eager,
            fused,
            unavailable(PRODUCTS, "a diagonal core is in no product") if diagonal else products(rank),
            others=without_lora("LoRA has no core"),
            **more,
        ),
        work={
            "fwd": (0 if diagonal else 2 * core * modes, size * (core + made)),
            "bwd": (0 if diagonal else 4 * core * modes, size * (2 * core + made)),
        },
        quick=quick,
    )


def literal(t: Tensors) -> tuple[torch.Tensor, ...]:
    """One contraction per mode vector, as the released code repeats them for every projection."""
    core = t["core"]
    return (torch.stack([core * mode if core.dim() == 1 else core @ mode for mode in t["modes"]]),)


def eager(t: Tensors) -> tuple[torch.Tensor, ...]:
    """All mode vectors in one product with the core as a matrix, so that every result lies together."""
    rank = t["core"].shape[0]
    if t["core"].dim() == 1:
        return (t["core"] * t["modes"],)
    return (F.linear(t["modes"], t["core"].view(rank * rank, rank)).view(-1, rank, rank),)


def fused(t: Tensors) -> tuple[torch.Tensor, ...]:
    return (functional.mode_cores(t["core"], t["modes"]),)


def products(rank: int) -> Arm:
    """All mode vectors with the core as one matrix."""
    return alone(
        [("y", "modes", "core.T")],
        [("dmodes", "dy0", "core"), ("dcore", "dy0.T", "modes")],
        ["y"],
        lambda t: (-1, rank, rank),
    )
