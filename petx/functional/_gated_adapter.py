"""VL-PET's granularity-controlled adapter site: one differentiable function over the fused kernels."""

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from petx import reference
from petx._checks import (
    LARGEST,
    check_device,
    check_finite,
    check_flag,
    check_floating,
    check_mask,
    check_not_negative,
    check_probability,
    check_seed,
    is_integer,
    told,
)
from petx.functional._autograd import wants_gradient
from petx.functional._gated_adapter_options import CODES, OPTIONS, check_options
from petx.functional._operation import ARGUMENT_ERRORS, NUMBERS, Operation, autocast_dtype, autocasts, cast

__all__ = ["gated_adapter"]

# Values of h up to which a site on a CPU keeps its last products for the backward, and without a tail.
KEPT_VALUES, KEPT_VALUES_BARE = 1 << 20, 1 << 22

# The differentiable arguments, in the operator's order.
ARGUMENTS = "h x down_weight down_bias up_weight up_bias gate_down_weight gate_down_bias gate_weight gate_bias".split()
ARGUMENTS += ["norm_weight", "norm_bias"]
PARAMETERS = tuple(ARGUMENTS[2:])
# And those that are in float32 beside an h in 16 bits, if the last of them, a float32 x's place, is given.
WIDE = ("norm_weight", "norm_bias", "skip")


def gated_adapter(
    h: Tensor,
    x: Tensor | None,
    down_weight: Tensor,
    down_bias: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    *,
    granularity: str = "none",
    gate_down_weight: Tensor | None = None,
    gate_down_bias: Tensor | None = None,
    gate_weight: Tensor | None = None,
    gate_bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    padding_mask: Tensor | None = None,
    heads: int = 1,
    activation: str = "gelu_tanh",
    gate_input: str = "modified",
    middle_y: str = "linear",
    placement: str = "sequential",
    scale: float = 1.0,
    dropout: float = 0.0,
    residual: bool = False,
    norm: str | None = None,
    eps: float = 1e-5,
    seed: Tensor | None = None,
) -> Tensor:
    r"""``norm(x + dropout(s · G ⊙ (h + up(gelu(down(h))))))``, VL-PET's adapter site (arXiv 2308.09804, section 3).

    The gate G by ``granularity``, with S = h + ΔH (or h for ``gate_input="original"``):

    - ``none``: 1
    - ``large``: σ(gelu(x · gate_downᵀ) · gateᵀ), one value per channel; ``gate_down_weight [r_g, d_x]``,
      ``gate_weight [d, r_g]``
    - ``middleX``: σ((x + S) · wᵀ), one value per token; ``gate_weight [1, d]``
    - ``middleY``: 1 + z, or 1 + σ(z) for ``middle_y="sigmoid"``; ``gate_weight [d]``
    - ``small``: mean over the sample's tokens of σ([x, S] · wᵀ); ``gate_weight [1, 2 d]``

    Args:
        h: ``[..., L, d]``, output of the frozen sub-layer. Floating; its dtype (under autocast, the autocast dtype) is
            that of the GEMMs and of the result.
        x: ``[..., L, d_x]``, input of the residual branch, or None if nothing reads it. With ``residual`` it may be
            float32 beside an h in 16 bits, as mixed precision keeps it: then the sum, the norm and the result are
            float32, too, while gates and a parallel modification read it in h's dtype.
        down_weight, down_bias: ``[r, d]`` (``[r, d_x]`` if parallel) and ``[r]`` or None.
        up_weight, up_bias: ``[d, r / heads]`` and ``[d]`` or None; ``heads > 1`` makes the up projection
            block-diagonal (the paper's down-up-pair design).
        activation: ``"gelu_tanh"``, as released, or ``"gelu"``, exact.
        placement: the modification reads h (``"sequential"``) or x (``"parallel"``).
        gate_bias, gate_down_bias: ``[d]`` and ``[r_g]`` for ``large``, ``[1]`` and unused for ``middleX``, ``small``.
        padding_mask: ``[..., L]``, non-zero where a token counts in the mean of ``small``; default: all do.
        scale: s. dropout: probability, 0 for none. residual: add ``x``. norm: None, ``"layer"`` or ``"rms"``, of
            ``norm_weight [d]``, ``norm_bias [d]`` or None, and eps.
        seed: int64 tensor of one element, the key of the dropout's Philox generator; drawn from torch's generator
            if None.

    Returns ``[..., L, d]``. Parameters may be of another floating dtype (say float32 beside a bf16 base); their
    gradients come back in it. Not twice differentiable. If no kernel exists for ``h``'s device, the readable
    reference runs (``petx info`` says which).

    Raises ValueError naming the argument, what came and what was wanted.
    """
    adapter, gate = (down_weight, down_bias, up_weight, up_bias), (gate_down_weight, gate_down_bias)
    tensors = (h, x, *adapter, *gate, gate_weight, gate_bias, norm_weight, norm_bias)
    choices = (granularity, activation, gate_input, middle_y, placement, norm)
    return site(tensors, padding_mask, seed, choices, heads, residual, scale, dropout, eps)


def site(
    tensors: tuple[Tensor | None, ...],
    padding_mask: Tensor | None,
    seed: Tensor | None,
    choices: tuple[str | None, ...],
    heads: int,
    residual: bool,
    scale: float,
    dropout: float,
    eps: float,
) -> Tensor:
    """:func:`gated_adapter` of what a layer has: ``tensors`` in the order of :data:`ARGUMENTS`, ``choices`` in that of
    :data:`OPTIONS`."""
    h: Any = tensors[0]
    down: Any = tensors[2]
    # What the operator does not see or would not refuse.
    checked = type(scale) in NUMBERS and abs(scale) <= LARGEST and type(eps) in NUMBERS and 0 <= eps <= LARGEST
    checked = checked and padding_mask is None and seed is None
    if checked and type(dropout) in NUMBERS and dropout == 0 and OPERATION.can_try_fast_path(h, down):
        try:
            if h.dtype is down.dtype and h.is_contiguous():
                granularity, *others = CODES[choices]
                numbers = (granularity, heads, *others, residual, scale, 0.0, eps, False)
                return torch.ops.petx.gated_adapter_fwd(*tensors, None, None, None, *numbers)[0]
        except ARGUMENT_ERRORS:
            pass
    arguments = (tensors, padding_mask, seed, choices, heads, residual, scale, dropout, eps)
    return OPERATION.call_or_explain(h, down, _run, check, arguments, check_first=not checked)


def check(
    tensors: tuple[Any, ...],
    mask: Any,
    seed: Any,
    choices: tuple[Any, ...],
    heads: Any,
    residual: Any,
    scale: Any,
    dropout: Any,
    eps: Any,
) -> None:
    """Raise ValueError if an argument does not fit the others."""
    check_options(**dict(zip(OPTIONS, choices, strict=True)))
    if not is_integer(heads) or heads < 1:
        raise ValueError(f"gated_adapter: heads must divide r and d, a positive integer, got {told(heads)}")
    check_flag("gated_adapter", residual=residual)
    check_probability("gated_adapter", dropout=dropout)
    check_finite("gated_adapter", scale=scale)
    check_not_negative("gated_adapter", eps=eps)
    named = dict(zip(ARGUMENTS, tensors, strict=True))
    _check_shapes(named, mask, dict(zip(OPTIONS, choices, strict=True)), heads, residual)
    h, x = tensors[:2]
    if x is None or x.dtype == h.dtype or autocasts(h.device):
        pass
    elif not _is_wide(h, x, residual):
        wider = " or, beside 16 bits, float32" if residual and h.dtype.itemsize == 2 else ""
        raise ValueError(f"gated_adapter: x must have h's dtype {h.dtype}{wider}, got {x.dtype}")
    check_seed("gated_adapter", seed, h)


def _check_shapes(tensors: Mapping[str, Any], mask: Any, options: dict[str, Any], heads: int, residual: bool) -> None:
    granularity, placement, norm = options["granularity"], options["placement"], options["norm"]
    h, x, down = tensors["h"], tensors["x"], tensors["down_weight"]
    check_floating("gated_adapter", "h", h, "[..., length, d]", least_dims=2)
    d = h.shape[-1]
    reads_x = residual or _site_reads_x(granularity, placement)
    if reads_x and x is None:
        raise ValueError("gated_adapter: x is required by this granularity, placement or residual, got None")
    if x is not None:
        check_floating("gated_adapter", "x", x, "[..., length, d_x] or None")
        if x.shape[:-1] != h.shape[:-1]:
            raise ValueError(f"gated_adapter: x must be {[*h.shape[:-1], 'd_x']} like h, got {list(x.shape)}")
    d_x = d if x is None else x.shape[-1]
    if reads_x and d_x != d and (residual or granularity in ("middleX", "small")):
        raise ValueError(f"gated_adapter: x must have h's width {d} here, got {d_x}")
    check_floating("gated_adapter", "down_weight", down, "[r, width]")
    if down.dim() != 2 or down.shape[0] < 1:
        raise ValueError(f"gated_adapter: down_weight must be [r, width] with r >= 1, got {list(down.shape)}")
    r = down.shape[0]
    if r % heads or d % heads:
        raise ValueError(f"gated_adapter: heads must divide r and d, got heads={heads}, r={r}, d={d}")
    gate_down = tensors["gate_down_weight"]
    gate_rank = gate_down.shape[0] if isinstance(gate_down, Tensor) and gate_down.dim() == 2 else "r_g"
    if granularity == "large" and gate_rank == 0:
        raise ValueError(
            f"gated_adapter: gate_down_weight must be [r_g, d_x] with r_g >= 1, got {list(gate_down.shape)}"
        )
    gates = {"large": [d, gate_rank], "middleX": [1, d], "middleY": [d], "small": [1, 2 * d]}
    wanted = {
        "down_weight": [r, d if placement == "sequential" else d_x],
        "down_bias": [r],
        "up_weight": [d, r // heads],
        "up_bias": [d],
        "gate_down_weight": [gate_rank, d_x] if granularity == "large" else None,
        "gate_down_bias": [gate_rank] if granularity == "large" else None,
        "gate_weight": gates.get(granularity),
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
            used = f"granularity={granularity!r}, norm={norm!r}"
            raise ValueError(f"gated_adapter: {name} is not used with {used}; got {told(tensor)}")
        elif not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            check_floating("gated_adapter", name, tensor, str(shape))
        elif list(tensor.shape) != shape:
            raise ValueError(f"gated_adapter: {name} must be {shape}, got {list(tensor.shape)}")
    for name, tensor in tensors.items():
        if tensor is not None:
            check_device("gated_adapter", name, tensor, h)
    check_mask("gated_adapter", "padding_mask", mask, h.shape[:-1], h)


def _run(
    tensors: tuple[Any, ...],
    padding_mask: Any,
    seed: Any,
    choices: tuple[str | None, ...],
    heads: int,
    residual: bool,
    scale: float,
    dropout: float,
    eps: float,
) -> Tensor:
    h, x, *parameters = tensors
    if autocasts(h.device):  # without it the operator refuses an x of another dtype
        h = cast(h, autocast_dtype(h))
        if not _is_wide(h, x, residual):
            x = cast(x, h.dtype)
    if seed is not None:
        seed = seed.reshape(1)
    elif dropout > 0:
        seed = torch.randint(2**62, (1,), dtype=torch.int64, device=h.device)
    if OPERATION.runs_reference(h, parameters[0]):
        options: dict[str, Any] = dict(zip(OPTIONS, choices, strict=True))
        options |= dict(heads=heads, residual=residual, scale=scale, dropout=dropout, eps=eps)
        return _by_reference((h, x, *parameters), padding_mask, seed, **options)
    x, skip = _apart(h, x, residual, choices)
    granularity, *others = CODES[choices]
    return OPERATION.differentiable(
        h.contiguous(),
        None if x is None else x.contiguous(),
        *parameters,
        None if skip is None else skip.contiguous(),
        None if padding_mask is None else padding_mask.ne(0).reshape(-1),
        seed,
        granularity,
        heads,
        *others,
        residual and skip is None,
        float(scale),
        float(dropout),
        float(eps),
        _keeps_products(h, tensors, choices, residual, dropout),
    )[0]


def _is_wide(h: Tensor, x: Tensor | None, residual: bool) -> bool:
    """Whether x is a residual stream in float32 beside an h in 16 bits."""
    return residual and x is not None and h.dtype != x.dtype == torch.promote_types(h.dtype, torch.float32)


def _site_reads_x(granularity: str | None, placement: str | None) -> bool:
    """Whether the gate or the adapter does, whatever is added to the result."""
    return placement == "parallel" or granularity in ("large", "middleX", "small")


def _apart(
    h: Tensor, x: Tensor | None, residual: bool, choices: tuple[str | None, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """x as gates and a parallel modification read it, and a residual stream that is wider than h, or None."""
    if x is None or not _is_wide(h, x, residual):
        return x, None
    chosen = dict(zip(OPTIONS, choices, strict=True))
    return (cast(x, h.dtype) if _site_reads_x(chosen["granularity"], chosen["placement"]) else None), x


def _keeps_products(
    h: Tensor, tensors: tuple[Tensor | None, ...], choices: tuple[str | None, ...], residual: bool, dropout: float
) -> bool:
    """Whether the backward gets the site's last products instead of recomputing them: if these two of fourteen weigh
    more than their memory, with few rows or little between the products."""
    if not h.is_cpu or h.dtype not in (torch.float32, torch.float64) or torch.compiler.is_compiling():
        return False
    if not wants_gradient(tensors):
        return False
    tail = residual or dropout > 0 or choices[-1] is not None
    return h.numel() <= (KEPT_VALUES if tail else KEPT_VALUES_BARE)


def _by_reference(tensors: tuple[Any, ...], padding_mask: Any, seed: Any, **options: Any) -> Tensor:
    """The reference on ``[B, L, d]`` views, parameters cast to h's dtype, the norm's to that of the residual stream."""
    h, x, *parameters = tensors
    x, skip = _apart(h, x, options["residual"], tuple(options[name] for name in OPTIONS))
    shape = h.shape

    def batched(tensor: Any) -> Any:
        return None if tensor is None else tensor.reshape(-1, *tensor.shape[-2:])

    options |= dict(residual=options["residual"] and skip is None)
    options |= dict(padding_mask=None if padding_mask is None else padding_mask.ne(0).reshape(-1, shape[-2]))
    stream = h.dtype if skip is None else skip.dtype
    for name, parameter in zip(ARGUMENTS[2:], parameters, strict=True):
        options[name] = cast(parameter, stream if name in WIDE else h.dtype)
    return reference.gated_adapter(batched(h), batched(x), skip=batched(skip), seed=seed, **options).reshape(shape)


def _shapes(given: SimpleNamespace) -> tuple[Tensor, ...]:
    """The result and what the backward needs: z, the gate's z, statistics, and the last GEMMs' results if kept."""
    h, gate_down = given.h, given.gate_down_weight
    granularity, norm = OPTIONS["granularity"][given.granularity], OPTIONS["norm"][given.norm]
    compute = torch.promote_types(h.dtype, torch.float32)
    rows = math.prod(h.shape[:-1])
    gate_z = (0, 0) if gate_down is None else (rows, gate_down.shape[0])
    kept = rows if given.keep else 0
    return (
        torch.empty_like(h if given.skip is None else given.skip),
        h.new_empty(rows, given.down_weight.shape[0]),
        h.new_empty(gate_z),
        h.new_empty(rows if granularity in ("middleX", "small") else 0, dtype=compute),
        h.new_empty(rows if norm else 0, 2, dtype=compute),
        h.new_empty(kept, h.shape[-1]),
        h.new_empty(kept if granularity == "large" else 0, h.shape[-1]),
    )


# It keeps what exists anyway (h, x, parameters) and narrow tensors: z, the gate's z, statistics, the seed; and the
# last GEMMs' results, of width d, if the last argument asks for it.
OPERATION = Operation(
    "gated_adapter",
    (*ARGUMENTS, "skip"),
    activations=("h", "x"),
    constants=("mask", "seed"),
    forward_only=1,
    wide=WIDE,
    rank_dim=0,
    shapes=_shapes,
)
