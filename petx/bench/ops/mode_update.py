"""PETAL's update of the projections of one input."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from petx import functional
from petx.bench.case import Arm, BenchCase, Built, Problem, Shapes, Sweep, Tensors, Unavailable, problem
from petx.bench.ops import mode_cores
from petx.bench.peers import LORA, LYCORIS, arms, without_lora
from petx.bench.products import alone


def cases(shapes: Shapes) -> list[BenchCase]:
    text, image, wide = shapes.tokens(1_024), shapes.tokens(4_112, 4), shapes.tokens(2_048, 4)
    dtype, options = shapes.dtype, shapes.options
    listed = [
        case(text, dtype, "text-qkv", quick=shapes.quick, **options),
        case(text, dtype, "text-qkv-projected", projections=True, quick=shapes.quick, **options),
    ]
    if shapes.main_only:
        return listed
    listed += [
        case(image, dtype, "image-kv", d_in=1408, modes=2, dx=False, **options),
        case(wide, dtype, "wide", d_in=4096, d_out=4096, modes=1, **options),
    ]
    if shapes.gpu:
        listed += [
            case(16_384, dtype, "text-qkv-16384", **options),
            case(16_384, dtype, "image-kv-16384", d_in=1408, modes=2, dx=False, **options),
            case(8_192, dtype, "wide-8192", d_in=4096, d_out=4096, modes=1, **options),
        ]
    return listed


def sweeps(factor: int) -> list[Sweep]:
    """Sweeps of one size each, with ``factor`` times a CPU's tokens."""
    dtype, tokens = torch.float32, 1024 * factor
    return [
        ("N", [case(n * factor, dtype, f"N={n}") for n in (256, 512, 1024, 2048, 4096)]),
        ("R", [case(tokens, dtype, f"R={r}", rank=r) for r in (16, 32, 64, 128)]),
        ("modes", [case(tokens, dtype, f"modes={k}", modes=k) for k in (1, 2, 3, 4)]),
    ]


def case(
    tokens: int,
    dtype: torch.dtype,
    name: str,
    *,
    d_in: int = 768,
    d_out: int = 768,
    rank: int = 64,
    modes: int = 3,
    projections: bool = False,
    diagonal: bool = False,
    dx: bool = True,
    dropout: float = 0.1,
    quick: bool = False,
    **more: Any,
) -> BenchCase:
    """PETAL's update of K projections of one input, alone (bases given) or with the frozen projections; ``diagonal``
    is the core of a CP decomposition."""
    size, K = dtype.itemsize, modes
    core = (rank,) * (1 if diagonal else 3)
    parameters = {"u": (rank, d_in), "v": (d_out, rank), "core": core, "modes": (K, rank)}
    activations, frozen = {"x": (1, tokens, d_in)}, {}
    if projections:
        frozen = {f"weight_{k}": (d_out, d_in) for k in range(K)} | {f"bias_{k}": (d_out,) for k in range(K)}
        others = [Arm(LORA, lora), Arm(LYCORIS, lycoris)]
    else:
        activations |= {f"base_{k}": (1, tokens, d_out) for k in range(K)}
        reason = "its layer contains the frozen projection; see the cases with projections"
        others = without_lora(reason)
    flops = 2 * tokens * (d_in * rank + K * rank * ((0 if diagonal else rank) + d_out))
    dense = 2 * tokens * K * d_in * d_out if projections else 0
    read, written = tokens * d_in * size, tokens * K * d_out * size
    weights = size * (K * d_in * d_out if projections else 0) + size * rank * (d_in + d_out)
    return BenchCase(
        "mode_update",
        name,
        dtype,
        dict(N=tokens, d_in=d_in, d_out=d_out, R=rank, modes=K, projections=projections)
        | (dict(core="diagonal") if diagonal else {}),
        lambda made, device: problem(made, device, parameters, activations, frozen, ("x",) if dx else ()),
        arms(
            literal,
            eager,
            fused,
            products(K, projections, dx, diagonal),
            others=others,
            **more,
        ),
        dict(dropout=dropout, projections=projections),
        {
            "fwd": (flops + dense, read + (1 if projections else 2) * written + weights),
            "bwd": (
                2 * flops - (0 if dx else 2 * tokens * d_in * rank) + (dense if dx else 0),
                (2 if dx else 1) * read + written + weights,
            ),
        },
        quick,
    )


def literal(t: Tensors, *, dropout: float, projections: bool) -> tuple[torch.Tensor, ...]:
    """As released: x Uᵀ, dropout, the core's contraction and the GEMM by V, again for every projection."""
    outputs = []
    for base, mode in zip(_bases(t, projections), t["modes"], strict=True):
        hidden = F.dropout(F.linear(t["x"], t["u"]), dropout, training=True)
        mixed = hidden * (t["core"] * mode) if t["core"].dim() == 1 else hidden @ (t["core"] @ mode)
        outputs.append(base + F.linear(mixed, t["v"]))
    return tuple(outputs)


def eager(t: Tensors, *, dropout: float, projections: bool) -> tuple[torch.Tensor, ...]:
    """With care: x Uᵀ once, all cores in one product, and the last product added to the base in the same call."""
    hidden = F.linear(t["x"], t["u"]).flatten(0, -2)
    (cores,) = mode_cores.eager(t)
    outputs = []
    for base, core in zip(_bases(t, projections), cores, strict=True):
        narrow = F.dropout(hidden, dropout, training=True)
        narrow = narrow * core if core.dim() == 1 else narrow @ core
        outputs.append(torch.addmm(base.flatten(0, -2), narrow, t["v"].T).view_as(base))
    return tuple(outputs)


def fused(t: Tensors, *, dropout: float, projections: bool) -> tuple[torch.Tensor, ...]:
    cores = functional.mode_cores(t["core"], t["modes"])
    return functional.mode_update(t["x"], t["u"], t["v"], cores, _bases(t, projections), dropout=dropout)


def _bases(t: Tensors, projections: bool) -> list[torch.Tensor]:
    """The frozen projections' outputs: given, or computed here with their weights."""
    count = len(t["modes"])
    if projections:
        return [F.linear(t["x"], t[f"weight_{k}"], t[f"bias_{k}"]) for k in range(count)]
    return [t[f"base_{k}"] for k in range(count)]


def products(modes: int, projections: bool, dx: bool, diagonal: bool = False) -> Arm:
    """PETAL's update of some projections, with the frozen GEMMs if the case has them."""
    forward, backward = [("hidden", "x", "u.T")], []
    for k in range(modes):
        if projections:
            forward.append((f"base_{k}", "x", f"weight_{k}.T"))
        mixed, dhidden = ("hidden", "dg") if diagonal else (f"g{k}", "dhidden")
        forward += [] if diagonal else [(mixed, "hidden", f"core[{k}]")]
        forward.append((f"y{k}", mixed, "v.T"))
        backward += [("dg", f"dy{k}", "v"), ("dv", f"dy{k}.T", mixed)]
        backward += [] if diagonal else [(dhidden, "dg", f"core[{k}].T"), ("dcore", "hidden.T", "dg")]
        if projections and dx:
            backward.append(("dx", f"dy{k}", f"weight_{k}"))
    backward.append(("du", f"{dhidden}.T", "x"))
    if dx:
        backward.append(("dx", dhidden, "u"))
    return alone(forward, backward, [f"y{k}" for k in range(modes)], lambda t: (*t["x"].shape[:-1], -1))


def lora(case: BenchCase, problem: Problem) -> Built:
    """PEFT's LoRA layer of equal rank around each frozen projection, its dropout on."""
    try:
        from peft import LoraConfig
        from peft.tuners.lora import Linear
    except ImportError as error:
        raise Unavailable("peft is not installed") from error
    rank, layers, leaves = case.sizes["R"], [], []
    for base in _linears(case, problem):
        options = dict(r=rank, lora_alpha=rank, lora_dropout=case.options["dropout"], init_lora_weights=False)
        try:
            layer = Linear(base, "default", config=LoraConfig(**options), **options)
        except TypeError:  # PEFT before it took the options from the configuration alone
            layer = Linear(base, "default", **options)
        layer = layer.to(device=base.weight.device, dtype=case.dtype).train()
        layers.append(layer)
        leaves += [p for p in layer.parameters() if p.requires_grad]
    return lambda t: tuple(layer(t["x"]) for layer in layers), leaves


def lycoris(case: BenchCase, problem: Problem) -> Built:
    """LyCORIS' LoRA of equal rank, on a GPU: without a core and with dropout off, its nearest algebra."""
    linears = _linears(case, problem)
    if linears[0].weight.device.type != "cuda":
        raise Unavailable("its fused kernels need a GPU")
    try:
        from lycoris.modules.locon import LoConModule
    except ImportError as error:
        raise Unavailable("lycoris-lora is not installed") from error
    rank, layers = case.sizes["R"], []
    for k, base in enumerate(linears):
        layer: Any = LoConModule(f"projection_{k}", base, 1.0, rank, rank, bypass_mode=True)
        layer = layer.to(base.weight.device, case.dtype)
        layers.append(layer.train())
    return lambda t: tuple(layer(t["x"]) for layer in layers), [
        p for layer in layers for p in layer.parameters() if p.requires_grad
    ]


def _linears(case: BenchCase, problem: Problem) -> list[nn.Linear]:
    linears = []
    for k in range(case.sizes["modes"]):
        linear = nn.Linear(case.sizes["d_in"], case.sizes["d_out"], device="meta", dtype=case.dtype)
        linear.weight = nn.Parameter(problem.frozen[f"weight_{k}"], requires_grad=False)
        linear.bias = nn.Parameter(problem.frozen[f"bias_{k}"], requires_grad=False)
        linears.append(linear)
    return linears
