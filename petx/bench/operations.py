"""The cases of every operation: published shapes, on a CPU with fewer tokens by the factor that ``CPU_SCALE`` names."""

import torch
from torch import nn

from petx.bench import peers, products
from petx.bench.case import PETX, Arm, BenchCase, Problem, Unavailable, compiled, plain, unavailable

# Tokens on a CPU are those of the published batch divided by this.
CPU_SCALE = {"bart": 10, "t5": 10, "qformer-text": 1, "qformer-image": 4, "wide": 4}
NO_LORA = "LoRA adds to one projection and computes no such function; the layer benchmarks have it beside"
NO_CORE = "LoRA has no core"
DTYPES = (torch.float32, torch.bfloat16)


def problem(case, device, parameters, activations, frozen=None, gradients=(), seed=0):
    """Tensors from shapes: activations of about 1, parameters a tenth of it; ``gradients`` name the activations that
    need one."""
    generator = torch.Generator(device).manual_seed(seed)

    def draw(shape, scale):
        return torch.randn(shape, generator=generator, device=device).mul_(scale).to(case.dtype)

    def fresh():
        return {n: draw(s, 1.0).requires_grad_(n in gradients) for n, s in activations.items()}

    values = {n: draw(s, 0.1) for n, s in parameters.items()}
    values = {n: (t.abs() if n == "threshold" else t).requires_grad_() for n, t in values.items()}
    return Problem(values, {n: draw(s, 0.1) for n, s in (frozen or {}).items()}, fresh)


def arms(literal, best, own, alone, *, to_compile=None, others=(), compile_best=True, why_not=""):
    """petx, its peers, and the products ``alone``.

    ``to_compile`` is the form to give to torch.compile, where the best eager one is not it.
    """
    listed = [plain(PETX, own), plain(peers.LITERAL, literal), plain(peers.BEST, best)]
    if compile_best:
        source = to_compile or best
        listed += [compiled(peers.COMPILED, source), compiled(peers.GRAPHS, source, "reduce-overhead")]
    else:
        listed += [unavailable(name, why_not) for name in (peers.COMPILED, peers.GRAPHS)]
    return (*listed, *others, alone)


def site(tokens, dtype, name, *, d=768, r=96, r_g=None, tail="none", heads=4, quick=False, **more):
    """VL-PET's large site; reads h and x and writes y, with 4 products of d by r a token."""
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
        lambda case, device: problem(case, device, parameters, {"h": shape, "x": shape}, gradients=("h", "x")),
        arms(
            peers.site_literal,
            peers.site_eager,
            peers.site_petx,
            products.site(),
            others=[unavailable(peers.LORA, NO_LORA), unavailable(peers.LYCORIS, NO_LORA)],
            **more,
        ),
        dict(heads=heads, dropout=0.1, tail=tail),
        {
            "fwd": (flops, 3 * size * tokens * d + weights),
            "bwd": (2 * flops, 5 * size * tokens * d + 2 * weights),
        },
        quick,
    )


def cores(modes, dtype, name, *, rank=64, quick=False, **more):
    size, core = dtype.itemsize, rank**3
    return BenchCase(
        "mode_cores",
        name,
        dtype,
        dict(modes=modes, R=rank),
        lambda case, device: problem(case, device, {"core": (rank,) * 3, "modes": (modes, rank)}, {}),
        arms(
            peers.cores_literal,
            peers.cores_eager,
            peers.cores_petx,
            products.cores(rank),
            others=[unavailable(peers.LORA, NO_CORE), unavailable(peers.LYCORIS, NO_CORE)],
            **more,
        ),
        work={
            "fwd": (2 * core * modes, size * (core + modes * rank**2)),
            "bwd": (4 * core * modes, size * (2 * core + modes * rank**2)),
        },
        quick=quick,
    )


def update(
    tokens, dtype, name, *, d_in=768, d_out=768, rank=64, modes=3, projections=False, dx=True, dropout=0.1, **more
):
    """PETAL's update of K projections of one input, alone (bases given) or with the frozen projections."""
    quick = more.pop("quick", False)
    size, K = dtype.itemsize, modes
    parameters = {"u": (rank, d_in), "v": (d_out, rank), "core": (rank,) * 3, "modes": (K, rank)}
    activations, frozen = {"x": (1, tokens, d_in)}, {}
    if projections:
        frozen = {f"weight_{k}": (d_out, d_in) for k in range(K)} | {f"bias_{k}": (d_out,) for k in range(K)}
        others = [Arm(peers.LORA, lora), Arm(peers.LYCORIS, lycoris)]
    else:
        activations |= {f"base_{k}": (1, tokens, d_out) for k in range(K)}
        reason = "its layer contains the frozen projection; see the cases with projections"
        others = [unavailable(peers.LORA, reason), unavailable(peers.LYCORIS, reason)]
    flops = 2 * tokens * (d_in * rank + K * rank * (rank + d_out))
    dense = 2 * tokens * K * d_in * d_out if projections else 0
    read, written = tokens * d_in * size, tokens * K * d_out * size
    weights = size * (K * d_in * d_out if projections else 0) + size * rank * (d_in + d_out)
    return BenchCase(
        "mode_update",
        name,
        dtype,
        dict(N=tokens, d_in=d_in, d_out=d_out, R=rank, modes=K, projections=projections),
        lambda case, device: problem(case, device, parameters, activations, frozen, ("x",) if dx else ()),
        arms(
            peers.update_literal,
            peers.update_eager,
            peers.update_petx,
            products.update(K, projections, dx),
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


def lora(case, problem):
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


def lycoris(case, problem):
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
        layer = LoConModule(f"projection_{k}", base, 1.0, rank, rank, bypass_mode=True)
        layer = layer.to(base.weight.device, case.dtype)
        layers.append(layer.train())
    return lambda t: tuple(layer(t["x"]) for layer in layers), [
        p for layer in layers for p in layer.parameters() if p.requires_grad
    ]


def _linears(case, problem):
    linears = []
    for k in range(case.sizes["modes"]):
        linear = nn.Linear(case.sizes["d_in"], case.sizes["d_out"], device="meta", dtype=case.dtype)
        linear.weight = nn.Parameter(problem.frozen[f"weight_{k}"], requires_grad=False)
        linear.bias = nn.Parameter(problem.frozen[f"bias_{k}"], requires_grad=False)
        linears.append(linear)
    return linears


def reconstruct(count, dtype, name, *, d_in=768, d_out=768, rank=64, gate="soft", full=False, quick=False, **more):
    """W + gate(ΔW) of all modules that share factors, frozen W."""
    size, entries = dtype.itemsize, count * d_in * d_out
    parameters = {"u": (rank, d_in), "v": (d_out, rank), "cores": (count, rank, rank) if full else (count, rank)}
    parameters |= {"threshold": (1,)} if gate == "soft" else {}
    return BenchCase(
        "cp_reconstruct",
        name,
        dtype,
        dict(modules=count, d_in=d_in, d_out=d_out, R=rank, gate=gate, core="full" if full else "diagonal"),
        lambda case, device: problem(case, device, parameters, {"weights": (count, d_out, d_in)}),
        arms(
            peers.reconstruct_literal,
            peers.reconstruct_eager,
            peers.reconstruct_petx,
            products.reconstruct(count, full),
            to_compile=peers.reconstruct_stacked,
            others=[unavailable(peers.LORA, NO_LORA), unavailable(peers.LYCORIS, NO_LORA)],
            **more,
        ),
        dict(gate=gate),
        {
            "fwd": (2 * entries * rank, 2 * size * entries),
            "bwd": (4 * entries * rank, size * entries),
        },
        quick,
    )


def mixture(tokens, dtype, name, *, d=768, experts=6, rank=64, gate="uniform", quick=False, **more):
    """K experts of rank r; N d values read and written once."""
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
        dict(N=tokens, d=d, K=experts, r=rank, gate=gate),
        lambda case, device: problem(case, device, parameters, {"x": (1, tokens, d)}, gradients=("x",)),
        arms(
            peers.mixture_literal,
            peers.mixture_eager,
            peers.mixture_petx,
            products.mixture(gate != "uniform"),
            others=[unavailable(peers.LORA, NO_LORA), unavailable(peers.LYCORIS, NO_LORA)],
            **more,
        ),
        dict(experts=experts, gate=gate, alpha=0.6, beta=0.4),
        {"fwd": (flops, 2 * size * tokens * d + weights), "bwd": (2 * flops, 3 * size * tokens * d + 2 * weights)},
        quick,
    )
