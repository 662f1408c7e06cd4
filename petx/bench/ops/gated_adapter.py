"""VL-PET's site: the gated adapter, with what the host's layer does to its output."""

import math
from typing import Any

import torch
import torch.nn.functional as F

from petx import functional
from petx.bench.case import Arm, BenchCase, Shapes, Sweep, Tensors, problem
from petx.bench.peers import arms, without_lora
from petx.bench.products import alone


def cases(shapes: Shapes) -> list[BenchCase]:
    bart, dtype, options = shapes.tokens(28_000, 10), shapes.dtype, shapes.options
    listed = [case(bart, dtype, "bart", tail="bart", quick=shapes.quick, **options)]
    if shapes.main_only:
        return listed
    listed += [
        case(bart, dtype, "bart-bare", **options),
        case(shapes.tokens(8_192, 10), dtype, "bart-small", tail="bart", **options),
        case(shapes.tokens(28_000, 10), dtype, "t5", r=192, tail="t5", **options),
    ]
    if shapes.gpu:
        listed.append(case(1_024, dtype, "bart-1024", tail="bart", **options))
    return listed


def sweeps(factor: int) -> list[Sweep]:
    """Sweeps of one size each, with ``factor`` times a CPU's tokens."""
    dtype, tokens = torch.float32, 1024 * factor
    return [
        ("N", [case(n * factor, dtype, f"N={n}", tail="bart") for n in (256, 512, 1024, 2048, 4096)]),
        ("d", [case(tokens, dtype, f"d={d}", d=d, tail="bart") for d in (256, 512, 1024, 2048)]),
        ("r", [case(tokens, dtype, f"r={r}", r=r, tail="bart") for r in (16, 32, 64, 128, 256)]),
    ]


def case(
    tokens: int,
    dtype: torch.dtype,
    name: str,
    *,
    d: int = 768,
    r: int = 96,
    r_g: int | None = None,
    tail: str = "none",
    heads: int = 4,
    quick: bool = False,
    **more: Any,
) -> BenchCase:
    """VL-PET's large site; reads h and x and writes y, with 4 products of d by r per token."""
    r_g = r if r_g is None else r_g
    parameters = {"down_weight": (r, d), "down_bias": (r,), "up_weight": (d, r), "up_bias": (d,)}
    parameters |= {"gate_down_weight": (r_g, d), "gate_down_bias": (r_g,), "gate_weight": (d, r_g), "gate_bias": (d,)}
    if tail == "bart":
        parameters |= {"norm_weight": (d,), "norm_bias": (d,)}
    shape, size = (max(tokens // 56, 1), tokens // max(tokens // 56, 1), d), dtype.itemsize
    tokens = shape[0] * shape[1]
    weights = size * 2 * d * (r + r_g)
    flops = 4 * tokens * d * (r + r_g)
    return BenchCase(
        "gated_adapter",
        name,
        dtype,
        dict(N=tokens, d=d, r=r, r_g=r_g, tail=tail),
        lambda made, device: problem(made, device, parameters, {"h": shape, "x": shape}, gradients=("h", "x")),
        arms(
            literal,
            eager,
            fused,
            products(),
            others=without_lora(),
            **more,
        ),
        dict(heads=heads, dropout=0.1, tail=tail),
        {
            "fwd": (flops, 3 * size * tokens * d + weights),
            "bwd": (2 * flops, 5 * size * tokens * d + 2 * weights),
        },
        quick,
    )


def gelu_new(z: torch.Tensor) -> torch.Tensor:
    """The tanh GELU as the released VL-PET stack computes it: one element-wise operation after another."""
    return 0.5 * z * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * torch.pow(z, 3.0))))


def literal(t: Tensors, *, heads: int, dropout: float, tail: str) -> tuple[torch.Tensor, ...]:
    """VL-PET's large site operation by operation as released: one linear per head, concatenation, gelu_new."""
    parts = zip(t["down_weight"].chunk(heads), t["down_bias"].chunk(heads), strict=True)
    z = torch.cat([F.linear(t["h"], weight, bias) for weight, bias in parts], dim=-1)
    s = t["h"] + F.linear(gelu_new(z), t["up_weight"], t["up_bias"])
    hidden = gelu_new(F.linear(t["x"], t["gate_down_weight"], t["gate_down_bias"]))
    return host_tail(s * torch.sigmoid(F.linear(hidden, t["gate_weight"], t["gate_bias"])), t, dropout, tail)


def eager(t: Tensors, *, heads: int, dropout: float, tail: str) -> tuple[torch.Tensor, ...]:
    """The same function as a careful user writes it: heads stacked into one product, torch's own GELU."""
    z = F.gelu(F.linear(t["h"], t["down_weight"], t["down_bias"]), approximate="tanh")
    s = t["h"] + F.linear(z, t["up_weight"], t["up_bias"])
    hidden = F.gelu(F.linear(t["x"], t["gate_down_weight"], t["gate_down_bias"]), approximate="tanh")
    return host_tail(s * torch.sigmoid(F.linear(hidden, t["gate_weight"], t["gate_bias"])), t, dropout, tail)


def host_tail(y: torch.Tensor, t: Tensors, dropout: float, tail: str) -> tuple[torch.Tensor, ...]:
    """What the host layer does with the site's output: BART's dropout, residual and norm, T5's without the norm."""
    if tail == "none":
        return (y,)
    y = t["x"] + F.dropout(y, dropout, training=True)
    return (F.layer_norm(y, y.shape[-1:], t["norm_weight"], t["norm_bias"]),) if tail == "bart" else (y,)


def fused(t: Tensors, *, heads: int, dropout: float, tail: str) -> tuple[torch.Tensor, ...]:
    arguments: dict[str, Any] = {**t, "granularity": "large"}
    if tail != "none":
        arguments |= dict(dropout=dropout, residual=True)
    if tail == "bart":
        arguments |= dict(norm="layer")
    return (functional.gated_adapter(**arguments),)


def products() -> Arm:
    """VL-PET's site: down, up and the gate's two."""
    return alone(
        [
            ("z", "h", "down_weight.T"),
            ("y", "z", "up_weight.T"),
            ("c", "x", "gate_down_weight.T"),
            ("s", "c", "gate_weight.T"),
        ],
        [
            ("dz", "dy0", "up_weight"),
            ("dup", "dy0.T", "z"),
            ("dh", "dz", "down_weight"),
            ("ddown", "dz.T", "h"),
            ("dc", "s", "gate_weight"),
            ("dgate", "s.T", "c"),
            ("dx", "dc", "gate_down_weight"),
            ("dgate_down", "dc.T", "x"),
        ],
        ["y"],
        lambda t: t["h"].shape,
    )
