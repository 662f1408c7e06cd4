"""VL-PET's site: the gated adapter, with what the host's layer does to its output."""

import math
from collections.abc import Callable
from functools import partial
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
    granularity: str = "large",
    stream: bool = False,
    quick: bool = False,
    **more: Any,
) -> BenchCase:
    """VL-PET's site; reads h and x and writes y, with 4 products of d by r per token if ``granularity`` is ``"large"``,
    or 2 if it is ``"middleX"``. With ``stream`` x, y and the norm are in float32, as autocast has them."""
    r_g = 0 if granularity == "middleX" else r if r_g is None else r_g
    parameters = {"down_weight": (r, d), "down_bias": (r,), "up_weight": (d, r), "up_bias": (d,)}
    if granularity == "middleX":
        parameters |= {"gate_weight": (1, d), "gate_bias": (1,)}
    else:
        parameters |= {"gate_down_weight": (r_g, d), "gate_down_bias": (r_g,)}
        parameters |= {"gate_weight": (d, r_g), "gate_bias": (d,)}
    if tail == "bart":
        parameters |= {"norm_weight": (d,), "norm_bias": (d,)}
    shape, size = (max(tokens // 56, 1), tokens // max(tokens // 56, 1), d), dtype.itemsize
    tokens = shape[0] * shape[1]
    weights, of_stream = size * 2 * d * (r + r_g), 4 if stream else size
    wide = ("x", "norm_weight", "norm_bias") if stream else ()
    flops = 4 * tokens * d * (r + r_g)
    return BenchCase(
        "gated_adapter",
        name,
        dtype,
        dict(N=tokens, d=d, r=r, r_g=r_g, tail=tail),
        lambda made, device: problem(
            made, device, parameters, {"h": shape, "x": shape}, gradients=("h", "x"), wide=wide
        ),
        arms(
            literal,
            eager,
            fused,
            products(granularity),
            others=without_lora(),
            **more,
        ),
        dict(heads=heads, dropout=0.1, tail=tail, granularity=granularity),
        {
            "fwd": (flops, (size + 2 * of_stream) * tokens * d + weights),  # h; x, y
            "bwd": (2 * flops, (2 * size + 3 * of_stream) * tokens * d + 2 * weights),  # h, dh; x, dy, dx
        },
        quick,
    )


def gelu_new(z: torch.Tensor) -> torch.Tensor:
    """The tanh GELU as the released VL-PET stack computes it: one element-wise operation after another."""
    return 0.5 * z * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * torch.pow(z, 3.0))))


def literal(t: Tensors, *, heads: int, dropout: float, tail: str, granularity: str) -> tuple[torch.Tensor, ...]:
    """VL-PET's site operation by operation as released: one linear per head, concatenation, gelu_new."""
    parts = zip(t["down_weight"].chunk(heads), t["down_bias"].chunk(heads), strict=True)
    z = torch.cat([F.linear(t["h"], weight, bias) for weight, bias in parts], dim=-1)
    s = t["h"] + F.linear(gelu_new(z), t["up_weight"], t["up_bias"])
    return host_tail(s * gate(t, s, granularity, gelu_new), t, dropout, tail)


def eager(t: Tensors, *, heads: int, dropout: float, tail: str, granularity: str) -> tuple[torch.Tensor, ...]:
    """The same function as a careful user writes it: heads stacked into one product, torch's own GELU."""
    z = F.gelu(F.linear(t["h"], t["down_weight"], t["down_bias"]), approximate="tanh")
    s = t["h"] + F.linear(z, t["up_weight"], t["up_bias"])
    return host_tail(s * gate(t, s, granularity, partial(F.gelu, approximate="tanh")), t, dropout, tail)


def gate(t: Tensors, s: torch.Tensor, granularity: str, activation: Callable) -> torch.Tensor:
    """G: of each value from x (large), or of each token from x + S (middleX)."""
    x = t["x"].to(s.dtype)
    if granularity == "middleX":
        return torch.sigmoid(F.linear(x + s, t["gate_weight"], t["gate_bias"]))
    hidden = activation(F.linear(x, t["gate_down_weight"], t["gate_down_bias"]))
    return torch.sigmoid(F.linear(hidden, t["gate_weight"], t["gate_bias"]))


def host_tail(y: torch.Tensor, t: Tensors, dropout: float, tail: str) -> tuple[torch.Tensor, ...]:
    """What the host layer does with the site's output: BART's dropout, residual and norm, T5's without the norm."""
    if tail == "none":
        return (y,)
    y = t["x"] + F.dropout(y, dropout, training=True)
    return (F.layer_norm(y, y.shape[-1:], t["norm_weight"], t["norm_bias"]),) if tail == "bart" else (y,)


def fused(t: Tensors, *, heads: int, dropout: float, tail: str, granularity: str) -> tuple[torch.Tensor, ...]:
    arguments: dict[str, Any] = {**t, "granularity": granularity}
    if tail != "none":
        arguments |= dict(dropout=dropout, residual=True)
    if tail == "bart":
        arguments |= dict(norm="layer")
    return (functional.gated_adapter(**arguments),)


def products(granularity: str) -> Arm:
    """VL-PET's site: down, up and the large gate's two."""
    forward = [("z", "h", "down_weight.T"), ("y", "z", "up_weight.T")]
    backward = [
        ("dz", "dy0", "up_weight"),
        ("dup", "dy0.T", "z"),
        ("dh", "dz", "down_weight"),
        ("ddown", "dz.T", "h"),
    ]
    if granularity == "large":
        forward += [("c", "x", "gate_down_weight.T"), ("s", "c", "gate_weight.T")]
        backward += [
            ("dc", "s", "gate_weight"),
            ("dgate", "s.T", "c"),
            ("dx", "dc", "gate_down_weight"),
            ("dgate_down", "dc.T", "x"),
        ]
    return alone(forward, backward, ["y"], lambda t: t["h"].shape)
