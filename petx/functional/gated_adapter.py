"""VL-PET's granularity-controlled adapter site: one differentiable function over the fused kernels."""

import itertools
import math

import torch
from torch.autograd.function import once_differentiable

from petx import ops, reference
from petx.functional._arguments import autocast_dtype, cast, checked_seed, checked_shape, operands
from petx.functional._autograd import MISFITS, Differentiable, guarded, operator_checks, straight, wants_gradient

__all__ = ["gated_adapter", "value_adapter", "value_adapters"]

# Option -> its values, in the order of the enums in csrc/kernels/gated_adapter.h.
OPTIONS = {
    "granularity": ("none", "large", "middleX", "middleY", "small"),
    "activation": ("gelu_tanh", "gelu"),
    "gate_input": ("modified", "original"),
    "middle_y": ("linear", "sigmoid"),
    "placement": ("sequential", "parallel"),
    "norm": (None, "layer", "rms"),
}
# All choices together -> the operator's integers for them.
_CODES = {
    choices: tuple(OPTIONS[name].index(choice) for name, choice in zip(OPTIONS, choices, strict=True))
    for choices in itertools.product(*OPTIONS.values())
}

# Values of h up to which a site on a CPU keeps its last products for the backward, and without a tail.
KEPT_VALUES, KEPT_VALUES_BARE = 1 << 20, 1 << 22

# Position of each differentiable argument; bit i of `needs` asks the backward for argument i's gradient.
ARGUMENTS = "h x down_weight down_bias up_weight up_bias gate_down_weight gate_down_bias gate_weight gate_bias".split()
ARGUMENTS += ["norm_weight", "norm_bias"]


def check_options(**options):
    """Raise ValueError for an option outside :data:`OPTIONS`."""
    for name, value in options.items():
        if value not in OPTIONS[name]:
            known = ", ".join(map(repr, OPTIONS[name]))
            raise ValueError(f"gated_adapter: {name} must be one of {known}, got {value!r}")


def check_shapes(tensors, mask, *, granularity, heads, placement, residual, norm):
    """Raise ValueError where an argument does not fit ``h``; ``tensors`` is name -> tensor or None."""
    h, x, down = tensors["h"], tensors["x"], tensors["down_weight"]
    if h.dim() < 2 or not h.is_floating_point():
        raise ValueError(f"gated_adapter: h must be floating [..., length, d], got {h.dtype} {list(h.shape)}")
    d = h.shape[-1]
    reads_x = placement == "parallel" or granularity in ("large", "middleX", "small") or residual
    if reads_x and x is None:
        raise ValueError("gated_adapter: x is required by this granularity, placement or residual, got None")
    if x is not None and x.shape[:-1] != h.shape[:-1]:
        raise ValueError(f"gated_adapter: x must be {[*h.shape[:-1], 'd_x']} like h, got {list(x.shape)}")
    d_x = d if x is None else x.shape[-1]
    if reads_x and d_x != d and (residual or granularity in ("middleX", "small")):
        raise ValueError(f"gated_adapter: x must have h's width {d} here, got {d_x}")
    if down.dim() != 2:
        raise ValueError(f"gated_adapter: down_weight must be [r, width], got {list(down.shape)}")
    r = down.shape[0]
    if heads < 1 or r % heads or d % heads:
        raise ValueError(f"gated_adapter: heads must divide r and d, got heads={heads}, r={r}, d={d}")
    gate_down = tensors["gate_down_weight"]
    gate_rank = gate_down.shape[0] if gate_down is not None and gate_down.dim() == 2 else "r_g"
    wanted = {
        "down_weight": [r, d if placement == "sequential" else d_x],
        "down_bias": [r],
        "up_weight": [d, r // heads],
        "up_bias": [d],
        "gate_down_weight": [gate_rank, d_x] if granularity == "large" else None,
        "gate_down_bias": [gate_rank] if granularity == "large" else None,
        "gate_weight": {"none": None, "large": [d, gate_rank], "middleX": [1, d], "middleY": [d], "small": [1, 2 * d]}[
            granularity
        ],
        "gate_bias": {"large": [d], "middleX": [1], "small": [1]}.get(granularity),
        "norm_weight": [d] if norm else None,
        "norm_bias": [d] if norm == "layer" else None,
    }
    required = {"up_weight"} | ({"gate_down_weight"} if granularity == "large" else set())
    required |= {"gate_weight"} if granularity != "none" else set()
    required |= {"norm_weight"} if norm else set()
    for name, shape in wanted.items():
        tensor = tensors[name]
        if tensor is None:
            if name in required:
                raise ValueError(f"gated_adapter: {name} must be {shape}, got None")
        elif shape is None:
            where = f"granularity={granularity!r}, norm={norm!r}"
            raise ValueError(f"gated_adapter: {name} is not used with {where}; got {list(tensor.shape)}")
        elif list(tensor.shape) != shape:
            raise ValueError(f"gated_adapter: {name} must be {shape}, got {list(tensor.shape)}")
    for name, tensor in [*tensors.items(), ("padding_mask", mask)]:
        if tensor is not None and tensor.device != h.device:
            raise ValueError(f"gated_adapter: {name} must be on h's device {h.device}, got {tensor.device}")
    if mask is not None and mask.shape != h.shape[:-1]:
        raise ValueError(f"gated_adapter: padding_mask must be {list(h.shape[:-1])}, got {list(mask.shape)}")


def gated_adapter(
    h,
    x,
    down_weight,
    down_bias,
    up_weight,
    up_bias,
    *,
    granularity="none",
    gate_down_weight=None,
    gate_down_bias=None,
    gate_weight=None,
    gate_bias=None,
    norm_weight=None,
    norm_bias=None,
    padding_mask=None,
    heads=1,
    activation="gelu_tanh",
    gate_input="modified",
    middle_y="linear",
    placement="sequential",
    scale=1.0,
    dropout=0.0,
    residual=False,
    norm=None,
    eps=1e-5,
    seed=None,
):
    r"""``norm(x + dropout(s · G ⊙ (h + up(gelu(down(h))))))``, VL-PET's adapter site (arXiv 2308.09804, section 3).

    The gate G by ``granularity``, with S = h + ΔH (or h for ``gate_input="original"``):

    - ``none``: 1
    - ``large``: σ(gelu(x · gate_downᵀ) · gateᵀ), one value a channel; ``gate_down_weight [r_g, d_x]``,
      ``gate_weight [d, r_g]``
    - ``middleX``: σ((x + S) · wᵀ), one value a token; ``gate_weight [1, d]``
    - ``middleY``: 1 + z, or 1 + σ(z) for ``middle_y="sigmoid"``; ``gate_weight [d]``
    - ``small``: mean over the sample's tokens of σ([x, S] · wᵀ); ``gate_weight [1, 2 d]``

    Args:
        h: ``[..., L, d]``, output of the frozen sub-layer. Floating; its dtype is the compute and output dtype
            (under autocast, the autocast dtype).
        x: ``[..., L, d_x]``, input of the residual branch, or None where nothing reads it.
        down_weight, down_bias: ``[r, d]`` (``[r, d_x]`` if parallel) and ``[r]`` or None.
        up_weight, up_bias: ``[d, r / heads]`` and ``[d]`` or None; ``heads > 1`` makes the up projection
            block-diagonal (the paper's down-up-pair design).
        gate_bias, gate_down_bias: ``[d]`` and ``[r_g]`` for ``large``, ``[1]`` and unused for ``middleX``, ``small``.
        padding_mask: ``[..., L]``, non-zero where a token counts in the mean of ``small``; default: all do.
        scale: s. dropout: probability, 0 for none. residual: add ``x``. norm: None, ``"layer"`` or ``"rms"``.
        seed: int64 tensor of one element, the key of the dropout's Philox generator; drawn from torch's generator
            if None.

    Returns ``[..., L, d]``. Parameters may be of another floating dtype (say float32 beside a bf16 base); their
    gradients come back in it. Not twice differentiable. Where no kernel exists for ``h``'s device the readable
    reference runs (``petx info`` says which).

    Raises ValueError or RuntimeError naming the argument, what came and what was wanted.
    """
    tensors = (h, x, down_weight, down_bias, up_weight, up_bias)
    tensors += (gate_down_weight, gate_down_bias, gate_weight, gate_bias, norm_weight, norm_bias)
    choices = (granularity, activation, gate_input, middle_y, placement, norm)
    return site(tensors, padding_mask, seed, choices, heads, residual, scale, dropout, eps)


def site(tensors, padding_mask, seed, choices, heads, residual, scale, dropout, eps):
    """:func:`gated_adapter` of what a layer has: ``tensors`` in the order of :data:`ARGUMENTS`, ``choices`` in that of
    :data:`OPTIONS`."""
    h = tensors[0]
    if padding_mask is None and seed is None and dropout == 0 and straight("gated_adapter", h):
        try:
            if h.dtype is tensors[2].dtype and h.is_contiguous() and abs(scale) < math.inf:
                granularity, *others = _CODES[choices]
                numbers = (h.shape[-2], granularity, heads, *others, residual, scale, 0.0, eps, False)
                return torch.ops.petx.gated_adapter_fwd(*tensors, None, None, *numbers)[0]
        except MISFITS:
            pass
    arguments = (tensors, padding_mask, seed, choices, heads, residual, scale, dropout, eps)
    if not operator_checks("gated_adapter", h):
        check(*arguments)
        return _run(*arguments)
    if padding_mask is not None or seed is not None or h.dim() < 2 or not abs(scale) < math.inf:
        check(*arguments)
    return guarded(_run, check, arguments)


def check(tensors, mask, seed, choices, heads, residual, scale, dropout, eps):
    """Raise ValueError where an argument does not fit the others."""
    granularity, _, _, _, placement, norm = choices
    check_options(**dict(zip(OPTIONS, choices, strict=True)))
    if not 0 <= dropout < 1:
        raise ValueError(f"gated_adapter: dropout must be in [0, 1), got {dropout}")
    if not abs(scale) < math.inf:
        raise ValueError(f"gated_adapter: scale must be finite, got {scale}")
    named = dict(zip(ARGUMENTS, tensors, strict=True))
    check_shapes(named, mask, granularity=granularity, heads=heads, placement=placement, residual=residual, norm=norm)
    h, x = tensors[:2]
    if x is not None and x.dtype != h.dtype and not torch.is_autocast_enabled(h.device.type):
        raise ValueError(f"gated_adapter: x must have h's dtype {h.dtype}, got {x.dtype}")
    checked_seed("gated_adapter", seed, h.device)
    for name, tensor in named.items():
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(f"gated_adapter: {name} must be floating, got {tensor.dtype}")


def _run(tensors, padding_mask, seed, choices, heads, residual, scale, dropout, eps):
    h, x, *parameters = tensors
    if torch.is_autocast_enabled(h.device.type):  # without it the operator refuses an x of another dtype
        dtype = autocast_dtype(h)
        h, x = cast(h, dtype), cast(x, dtype)
    if seed is not None:
        seed = seed.reshape(1)
    elif dropout > 0:
        seed = torch.randint(2**62, (1,), dtype=torch.int64, device=h.device)
    if not ops.takes("gated_adapter", h):
        options = dict(zip(OPTIONS, choices, strict=True)) | dict(heads=heads, residual=residual)
        options |= dict(scale=scale, dropout=dropout, eps=eps)
        return _by_reference((h, x, *parameters), padding_mask, seed, **options)
    granularity, *others = _CODES[choices]
    return _GatedAdapter.call(
        tensors,
        h.contiguous(),
        None if x is None else x.contiguous(),
        *parameters,
        None if padding_mask is None else padding_mask.ne(0).reshape(-1),
        seed,
        h.shape[-2],
        granularity,
        heads,
        *others,
        residual,
        float(scale),
        float(dropout),
        float(eps),
        _keeps_products(h, tensors, choices, residual, dropout),
    )[0]


def _keeps_products(h, tensors, choices, residual, dropout):
    """Whether the backward gets the site's last products instead of making them anew: where these two of fourteen weigh
    more than their memory, with few rows or little between the products."""
    if not h.is_cpu or h.dtype not in (torch.float32, torch.float64) or torch.compiler.is_compiling():
        return False
    if not wants_gradient(tensors):
        return False
    tail = residual or dropout > 0 or choices[-1] is not None
    return h.numel() <= (KEPT_VALUES if tail else KEPT_VALUES_BARE)


def value_adapter(e, v, down_weight, down_bias, up_weight, up_bias, *, activation="gelu_tanh", scale=1.0):
    """``v + up(gelu(down(e)))``, VL-PET's decoder module beside the cross-attention's value projection.

    ``e [..., L, d_e]`` is the encoder output, ``v [..., L, d]`` the frozen projection of it (arXiv 2308.09804,
    section 3.4); weights as in :func:`gated_adapter` with ``placement="parallel"``, which this is.
    """
    return gated_adapter(
        v, e, down_weight, down_bias, up_weight, up_bias, activation=activation, placement="parallel", scale=scale
    )


def value_adapters(e, v, down_weight, down_bias, up_weight, up_bias, *, activation="gelu_tanh", scale=1.0):
    """:func:`value_adapter` of L decoder layers at once, which all read one encoder output: ``e`` is read once.

    ``e [..., L_e, d_e]``; ``v [..., L_e, L, d]``, the L frozen value projections of it, as one product with their
    weights stacked gives them; ``down_weight [L, r, d_e]``, ``down_bias [L, r]`` or None, ``up_weight [L, d, r]``,
    ``up_bias [L, d]`` or None. Returns ``[..., L_e, L, d]``.

    It is :func:`gated_adapter` with the layers as heads: their bottlenecks stacked, a block-diagonal up projection.
    """
    layers, rank = down_weight.shape[:2] if down_weight.dim() == 3 else (0, 0)
    wanted = {"v": [*e.shape[:-1], layers, -1], "down_weight": [layers, rank, e.shape[-1]], "down_bias": [layers, rank]}
    wanted |= {"up_weight": [layers, v.shape[-1], rank], "up_bias": [layers, v.shape[-1]]}
    given = dict(v=v, down_weight=down_weight, down_bias=down_bias, up_weight=up_weight, up_bias=up_bias)
    if layers < 1:
        raise ValueError(f"value_adapters: down_weight must be [L, r, d_e], got {list(down_weight.shape)}")
    for name, shape in wanted.items():
        checked_shape("value_adapters", name, given[name], shape, like=e, optional="bias" in name)
    flat = {n: None if t is None else t.flatten(0, 1) for n, t in given.items() if n != "v"}
    out = gated_adapter(
        v.flatten(-2), e, **flat, heads=layers, activation=activation, placement="parallel", scale=scale
    )
    return out.unflatten(-1, v.shape[-2:])


def _by_reference(tensors, padding_mask, seed, **options):
    """The reference on ``[B, L, d]`` views, parameters cast to h's dtype."""
    h, x, *parameters = tensors
    shape = h.shape

    def batched(tensor):
        return None if tensor is None else tensor.reshape(-1, *tensor.shape[-2:])

    mask = None if padding_mask is None else padding_mask.ne(0).reshape(-1, shape[-2])
    parameters = [None if p is None else p.to(h.dtype) for p in parameters]
    return reference.gated_adapter(batched(h), batched(x), *parameters, mask, seed, **options).reshape(shape)


class _GatedAdapter(Differentiable):
    """Keeps what exists anyway (h, x, parameters) and narrow tensors: z, the gate's z, statistics, the seed; and the
    last products, of width d, where the last input asks for it."""

    @staticmethod
    def forward(h, x, *rest):
        parameters, extras = rest[:10], rest[10:]
        return torch.ops.petx.gated_adapter_fwd(h, x, *operands(parameters, h.dtype), *extras)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.options = inputs[14:-1]
        ctx.save_for_backward(*inputs[:14], *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout, *_):
        if dout is None:
            return (None,) * (15 + len(ctx.options))
        h, x, *rest = ctx.saved_tensors
        parameters, mask, seed, saved = rest[:10], rest[10], rest[11], rest[12:]
        needs = sum(1 << i for i in range(12) if ctx.needs_input_grad[i])
        grads = torch.ops.petx.gated_adapter_bwd(
            dout.contiguous(), h, x, *operands(parameters, h.dtype), mask, seed, *saved, needs, *ctx.options
        )
        leaves = (h, x, *parameters)
        grads = [
            grad.to(leaf.dtype) if ctx.needs_input_grad[i] else None
            for i, (grad, leaf) in enumerate(zip(grads, leaves, strict=True))
        ]
        return (*grads, *(None,) * (3 + len(ctx.options)))


def _fwd_fake(h, x, *rest):
    parameters, length_and_on = rest[:10], rest[12:]
    granularity = OPTIONS["granularity"][length_and_on[1]]
    norm = OPTIONS["norm"][length_and_on[7]]
    compute = torch.float64 if h.dtype == torch.float64 else torch.float32
    rows, gate_down = math.prod(h.shape[:-1]), parameters[4]
    gate_z = (0, 0) if gate_down is None else (rows, gate_down.shape[0])
    kept = rows if length_and_on[-1] else 0
    return (
        torch.empty_like(h),
        h.new_empty(rows, parameters[0].shape[0]),
        h.new_empty(gate_z),
        h.new_empty(rows if granularity in ("middleX", "small") else 0, dtype=compute),
        h.new_empty(rows if norm else 0, 2, dtype=compute),
        h.new_empty(kept, h.shape[-1]),
        h.new_empty(kept if granularity == "large" else 0, h.shape[-1]),
    )


def _bwd_fake(dout, h, x, *rest):
    parameters, needs = rest[:10], rest[18]
    compute = torch.float64 if h.dtype == torch.float64 else torch.float32
    return tuple(
        h.new_empty((0,) if t is None or not needs >> i & 1 else t.shape, dtype=h.dtype if i < 2 else compute)
        for i, t in enumerate((h, x, *parameters))
    )


ops.register("gated_adapter", _fwd_fake, _bwd_fake)
