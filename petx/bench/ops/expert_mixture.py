"""PETAL's mixture of experts, with a uniform gate, one per token or one per sample."""

from typing import Any

import torch
import torch.nn.functional as F

from petx import functional
from petx.bench.case import Arm, BenchCase, Shapes, Sweep, Tensors, problem
from petx.bench.peers import arms, without_lora
from petx.bench.products import alone


def cases(shapes: Shapes) -> list[BenchCase]:
    text, image, wide = shapes.tokens(1_024), shapes.tokens(4_112, 4), shapes.tokens(2_048, 4)
    dtype, options = shapes.dtype, shapes.options
    listed = [case(text, dtype, "released", quick=shapes.quick, **options)]
    if shapes.main_only:
        return listed
    listed += [
        case(text, dtype, "token-gate", gate="token", **options),
        case(image, dtype, "narrow-token", experts=4, rank=16, gate="token", **options),
        case(wide, dtype, "wide", d=4096, experts=4, rank=16, **options),
    ]
    if shapes.gpu:
        listed.append(case(16_384, dtype, "released-16384", **options))
    return listed


def sweeps(factor: int) -> list[Sweep]:
    """Sweeps of one size each, with ``factor`` times a CPU's tokens."""
    dtype = torch.float32
    return [
        ("N", [case(n * factor, dtype, f"N={n}") for n in (256, 512, 1024, 2048, 4096)]),
        ("K", [case(1024 * factor, dtype, f"K={k}", experts=k) for k in (2, 4, 8, 16)]),
    ]


def case(
    tokens: int,
    dtype: torch.dtype,
    name: str,
    *,
    d: int = 768,
    experts: int = 6,
    rank: int = 64,
    gate: str = "uniform",
    length: int | None = None,
    quick: bool = False,
    **more: Any,
) -> BenchCase:
    """K experts of rank r; N d values read and written once. ``length``: the tokens of a sample, by default all."""
    length = length or tokens
    size, stacked = dtype.itemsize, experts * rank
    parameters = {
        "down_weight": (stacked, d),
        "down_bias": (stacked,),
        "up_weight": (d, stacked),
        "up_bias": (experts, d),
    }
    if gate != "uniform":
        parameters |= {"gate_weight": (experts, d), "gate_bias": (experts,)}
    flops = 4 * tokens * d * stacked + (0 if gate == "uniform" else 2 * tokens * d * experts)
    weights = size * 2 * d * stacked
    return BenchCase(
        "expert_mixture",
        name,
        dtype,
        dict(N=tokens, d=d, K=experts, r=rank, gate=gate) | (dict(L=length) if length < tokens else {}),
        lambda made, device: problem(made, device, parameters, {"x": (tokens // length, length, d)}, gradients=("x",)),
        arms(
            literal,
            eager,
            fused,
            products(gate != "uniform"),
            others=without_lora(),
            **more,
        ),
        dict(experts=experts, gate=gate, alpha=0.6, beta=0.4),
        {"fwd": (flops, 2 * size * tokens * d + weights), "bwd": (2 * flops, 3 * size * tokens * d + 2 * weights)},
        quick,
    )


def literal(t: Tensors, *, experts: int, gate: str, alpha: float, beta: float) -> tuple[torch.Tensor, ...]:
    """An expert at a time, as released."""
    weights = _gate(t, gate)
    downs, ups = t["down_weight"].chunk(experts), t["up_weight"].chunk(experts, dim=1)
    mixed: Any = 0
    for k, (down, bias, up) in enumerate(zip(downs, t["down_bias"].chunk(experts), ups, strict=True)):
        out = F.linear(F.linear(t["x"], down, bias), up, t["up_bias"][k])
        mixed = mixed + (out if weights is None else weights[..., k : k + 1] * out)
    return (alpha * t["x"] + beta * (mixed / experts if weights is None else mixed),)


def eager(t: Tensors, *, experts: int, gate: str, alpha: float, beta: float) -> tuple[torch.Tensor, ...]:
    """The experts stacked into two products; a uniform gate is a factor of the last."""
    x, weights = t["x"], _gate(t, gate)
    hidden = F.linear(x, t["down_weight"], t["down_bias"])
    if weights is None:
        return (alpha * x + (beta / experts) * F.linear(hidden, t["up_weight"], t["up_bias"].sum(0)),)
    scaled = (hidden.unflatten(-1, (experts, -1)) * weights.unsqueeze(-1)).flatten(-2)
    return (alpha * x + beta * (F.linear(scaled, t["up_weight"]) + weights @ t["up_bias"]),)


def fused(t: Tensors, *, experts: int, gate: str, alpha: float, beta: float) -> tuple[torch.Tensor, ...]:
    arguments: dict[str, Any] = {**t, "experts": experts, "gate": gate, "alpha": alpha, "beta": beta}
    return (functional.expert_mixture(**arguments),)


def _gate(t: Tensors, gate: str) -> torch.Tensor | None:
    if gate == "uniform":
        return None
    x = t["x"].mean(-2, keepdim=True) if gate == "sample" else t["x"]  # the mean of linear logits is that of x's
    return torch.softmax(F.linear(x, t["gate_weight"], t["gate_bias"]), -1)


def products(gated: bool) -> Arm:
    """The stacked experts' down and up, and the gate's."""
    forward = [("hidden", "x", "down_weight.T"), ("y", "hidden", "up_weight.T")]
    backward = [
        ("dhidden", "dy0", "up_weight"),
        ("dup", "dy0.T", "hidden"),
        ("ddown", "dhidden.T", "x"),
        ("dx", "dhidden", "down_weight"),
    ]
    if gated:
        forward.append(("gates", "x", "gate_weight.T"))
        backward += [("dgate", "gates.T", "x"), ("dx", "gates", "gate_weight")]
    return alone(forward, backward, ["y"], lambda t: t["x"].shape)
