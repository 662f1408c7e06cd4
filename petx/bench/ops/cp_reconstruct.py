"""The weights of modules that share CP factors: W + gate(ΔW)."""

from typing import Any

import torch
import torch.nn.functional as F

from petx import functional
from petx.bench.case import Arm, BenchCase, Shapes, Sweep, Tensors, problem
from petx.bench.peers import arms, without_lora
from petx.bench.products import alone


def cases(shapes: Shapes) -> list[BenchCase]:
    dtype, options = shapes.dtype, shapes.options
    listed = [case(48, dtype, "qformer", quick=shapes.quick, **options)]
    if shapes.main_only:
        return listed
    return [
        *listed,
        case(48, dtype, "qformer-full", gate="none", full=True, **options),
        case(1, dtype, "wide", d_in=4096, d_out=4096, **options),
    ]


def sweeps(factor: int) -> list[Sweep]:
    return [("modules", [case(k, torch.float32, f"modules={k}") for k in (3, 6, 12, 24, 48)])]


def case(
    count: int,
    dtype: torch.dtype,
    name: str,
    *,
    d_in: int = 768,
    d_out: int = 768,
    rank: int = 64,
    gate: str = "soft",
    full: bool = False,
    quick: bool = False,
    **more: Any,
) -> BenchCase:
    """W + gate(ΔW) of all modules that share factors, frozen W."""
    size, entries = dtype.itemsize, count * d_in * d_out
    cores: tuple[int, ...] = (count, rank, rank) if full else (count, rank)
    parameters: dict[str, tuple[int, ...]] = {"u": (rank, d_in), "v": (d_out, rank), "cores": cores}
    parameters |= {"threshold": (1,)} if gate == "soft" else {}
    return BenchCase(
        "cp_reconstruct",
        name,
        dtype,
        dict(modules=count, d_in=d_in, d_out=d_out, R=rank, gate=gate, core="full" if full else "diagonal"),
        lambda made, device: problem(made, device, parameters, {"weights": (count, d_out, d_in)}),
        arms(
            literal,
            eager,
            fused,
            products(count, full),
            to_compile=stacked,
            others=without_lora(),
            **more,
        ),
        dict(gate=gate),
        {
            "fwd": (2 * entries * rank, 2 * size * entries),
            "bwd": (4 * entries * rank, size * entries),
        },
        quick,
    )


def literal(t: Tensors, *, gate: str) -> tuple[torch.Tensor, ...]:
    """Module by module, element-wise operations one after another."""
    outputs = []
    for k, weight in enumerate(t["weights"].unbind()):
        core = t["cores"][k]
        delta = (t["v"] * core if core.dim() == 1 else t["v"] @ core.T) @ t["u"]
        if gate == "soft":
            delta = torch.sign(delta) * F.relu(delta.abs() - t["threshold"])
        outputs.append(weight + delta)
    return tuple(outputs)


def eager(t: Tensors, *, gate: str) -> tuple[torch.Tensor, ...]:
    """With care: the narrow products of all modules in one call, addmm if there is no gate."""
    cores = t["cores"]
    narrow = t["v"] * cores[:, None] if cores.dim() == 2 else t["v"] @ cores.mT
    outputs = []
    for weight, left in zip(t["weights"].unbind(), narrow.unbind(), strict=True):
        if gate == "none":
            outputs.append(torch.addmm(weight, left, t["u"]))
        else:
            delta = left @ t["u"]
            outputs.append(weight + (delta - torch.clamp(delta, -t["threshold"], t["threshold"])))
    return tuple(outputs)


def stacked(t: Tensors, *, gate: str) -> tuple[torch.Tensor, ...]:
    """All modules as one tensor: what a compiler can make one kernel of."""
    cores = t["cores"]
    delta = (t["v"] * cores[:, None] if cores.dim() == 2 else t["v"] @ cores.mT) @ t["u"]
    if gate == "soft":
        delta = torch.sign(delta) * F.relu(delta.abs() - t["threshold"])
    return (t["weights"] + delta).unbind()


def fused(t: Tensors, *, gate: str) -> tuple[torch.Tensor, ...]:
    threshold = t["threshold"] if gate == "soft" else None
    return functional.cp_reconstruct(t["weights"].unbind(), t["u"], t["v"], t["cores"], threshold, gate=gate)


def products(count: int, full: bool) -> Arm:
    """W + V C Uᵀ of some modules; the backward without recomputing ΔW."""
    forward, backward = [], []
    for k in range(count):
        if full:
            forward.append(("left", "v", f"cores[{k}].T"))
        forward.append((f"y{k}", "left" if full else "v", "u"))
        backward += [("dleft", f"dy{k}", "u.T"), ("du", "v.T", f"dy{k}")]
        if full:
            backward += [("dv", "dleft", f"cores[{k}]"), ("dcore", "dleft.T", "v")]
    return alone(forward, backward, [f"y{k}" for k in range(count)])
