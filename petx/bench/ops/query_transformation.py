"""PETAL's query transformation: a residual by channel."""

from typing import Any

import torch

from petx import functional
from petx.bench.case import PRODUCTS, BenchCase, Shapes, Sweep, Tensors, problem, unavailable
from petx.bench.peers import arms, without_lora

FACTOR = 0.1


def cases(shapes: Shapes) -> list[BenchCase]:
    image = shapes.tokens(4_112, 4)
    listed = [case(image, shapes.dtype, "qformer", quick=shapes.quick, **shapes.options)]
    return listed if shapes.main_only else [*listed, case(image, shapes.dtype, "wide", d=4096, **shapes.options)]


def sweeps(factor: int) -> list[Sweep]:
    """A sweep of the rows, ``factor`` times a CPU's."""
    return [("N", [case(n * factor, torch.float32, f"N={n}") for n in (256, 512, 1024, 2048, 4096)])]


def case(rows: int, dtype: torch.dtype, name: str, *, d: int = 768, quick: bool = False, **more: Any) -> BenchCase:
    """N rows of d values. The gradient of ``to`` is the result's, so that the backward writes x's alone."""
    moved = 3 * dtype.itemsize * rows * d
    activations = {"x": (rows, d), "to": (rows, d)}
    return BenchCase(
        "query_transformation",
        name,
        dtype,
        dict(N=rows, d=d),
        lambda made, device: problem(made, device, {"scale": (d,), "shift": (d,)}, activations, gradients=activations),
        arms(
            literal,
            eager,
            fused,
            unavailable(PRODUCTS, "no product is in it"),
            others=without_lora(),
            **more,
        ),
        work={"fwd": (0, moved), "bwd": (0, moved)},
        quick=quick,
    )


def literal(t: Tensors) -> tuple[torch.Tensor, ...]:
    """As released: a product, a sum, a multiple, a sum."""
    return (t["to"] + FACTOR * (t["x"] * t["scale"] + t["shift"]),)


def eager(t: Tensors) -> tuple[torch.Tensor, ...]:
    """The factor in the vectors, and one operation for product and sum."""
    return (t["to"] + torch.addcmul(FACTOR * t["shift"], t["x"], FACTOR * t["scale"]),)


def fused(t: Tensors) -> tuple[torch.Tensor, ...]:
    return (functional.query_transformation(t["x"], t["scale"], t["shift"], t["to"], factor=FACTOR),)
