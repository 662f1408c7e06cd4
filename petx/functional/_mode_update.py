"""PETAL's low-rank update beside the frozen projections of one input: one differentiable function."""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from petx import reference
from petx._checks import check_flag, check_floating, check_probability, check_seed, check_shape, refuse, told
from petx.functional._autograd import Differentiable, dtypes_of, wants_gradient
from petx.functional._operation import (
    ARGUMENT_ERRORS,
    NUMBERS,
    Operation,
    as_leaves,
    autocast_dtype,
    cast,
    copied,
    grads_by,
    is_vmapped,
    narrow_bits,
    needed_bits,
    operands,
)

__all__ = ["mode_update"]

MOST_MODES = 4


def mode_update(
    x: Tensor,
    u: Tensor | None,
    v: Tensor,
    cores: Tensor,
    bases: Sequence[Tensor] | None = None,
    *,
    dropout: float = 0.0,
    shared_mask: bool = False,
    seed: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """``y_k = base_k + drop_k(x Uᵀ) M_k Vᵀ`` for the K projections of one input (PETAL, arXiv 2312.12458).

    Args:
        x: ``[..., d_in]``. Floating; its dtype is the compute and output dtype (under autocast, the autocast dtype).
        u: ``[R, d_in]``, or None if ``x`` is already projected, ``[..., R]``: so one GEMM serves several calls.
        v: ``[d_out, R]``.
        cores: ``[K, R, R]``, or their diagonals ``[K, R]``; K from 1 to 4 (:func:`mode_cores` makes them).
        bases: K tensors ``[..., d_out]``, what the frozen projections returned, or None for the updates alone.
        dropout: probability for every value of x Uᵀ, 0 for none. shared_mask: one mask for all K, instead of K.
        seed: int64 tensor of one element, the key of the dropout's Philox generator; drawn from torch's generator if
            None.

    Returns a tuple of K tensors ``[..., d_out]``. Factors may be of another floating dtype; their gradients come back
    in it. Nothing is written into ``bases``. Not twice differentiable.

    Raises ValueError naming the argument, what came and what was wanted.
    """
    # Of no bases the operator would think that None was given.
    plain = seed is None and type(dropout) in NUMBERS and (bases is None or (type(bases) in (list, tuple) and bases))
    if plain and dropout == 0 and OPERATION.can_try_fast_path(x, cores):
        try:
            if x.dtype is v.dtype and x.is_contiguous():
                given = () if bases is None else bases
                return tuple(torch.ops.petx.mode_update_fwd(x, u, v, cores, given, None, 0.0, shared_mask)[1:])
        except ARGUMENT_ERRORS:
            pass
    arguments = (x, u, v, cores, bases, dropout, shared_mask, seed)
    return OPERATION.call_or_explain(x, cores, _run, check, arguments, check_first=not plain)


def update(
    x: Tensor,
    u: Tensor | None,
    v: Tensor,
    cores: Tensor,
    bases: Sequence[Tensor],
    dropout: float,
    shared_mask: bool,
    seed: Tensor | None,
    copies: tuple[Tensor | None, Tensor, Tensor] | None,
) -> tuple[Tensor, ...]:
    """:func:`mode_update` of a caller whose arguments fit, and who may have ``copies`` of u, v and cores in the compute
    dtype, so that several calls cast them once. Gradients go to u, v and cores, in their own dtypes."""
    transformed = torch._C._are_functorch_transforms_active()
    if not transformed and not wants_gradient((x, u, v, cores, *bases)):
        if copies is not None and not OPERATION.runs_reference(x, cores):
            u, v, cores = copies
        return mode_update(x, u, v, cores, bases, dropout=dropout, shared_mask=shared_mask, seed=seed)
    return _run(x, u, v, cores, bases, dropout, shared_mask, seed, copies)


def _run(
    x: Tensor,
    u: Any,
    v: Tensor,
    cores: Tensor,
    bases: Any,
    dropout: float,
    shared_mask: bool,
    seed: Any,
    copies: Sequence[Tensor | None] | None = None,
) -> tuple[Tensor, ...]:
    dtype = autocast_dtype(x)
    if dropout == 0:
        seed = None
    elif seed is None:
        seed = torch.randint(2**62, (1,), dtype=torch.int64, device=x.device)
    elif seed.dim() != 1:
        seed = seed.reshape(1)
    x = cast(x, dtype)
    bases = () if bases is None else [cast(base, dtype) for base in bases]
    # torch.func's vmap has no rule for an operator that takes a list of tensors.
    if OPERATION.runs_reference(x, cores) or torch._C._are_functorch_transforms_active():
        return _by_reference(x, u, v, cores, bases, seed, dropout, shared_mask)
    leaves = (x, u, v, cores, *bases)
    return _ModeUpdate.call(leaves, x, u, v, cores, seed, float(dropout), shared_mask, *bases, copies=copies)[1:]


def check(x: Any, u: Any, v: Any, cores: Any, bases: Any, dropout: Any, shared_mask: Any, seed: Any) -> None:
    """Raise ValueError if an argument does not fit the others."""
    check_floating("mode_update", "x", x, "[..., d_in]", least_dims=1)
    wanted = f"[K, R, R] or [K, R] with K from 1 to {MOST_MODES}"
    check_floating("mode_update", "cores", cores, wanted)
    if cores.dim() not in (2, 3) or not 1 <= cores.shape[0] <= MOST_MODES:
        raise ValueError(f"mode_update: cores must be {wanted}, got {list(cores.shape)}")
    count, rank = cores.shape[0], cores.shape[-1]
    if rank < 1:
        raise ValueError(f"mode_update: the rank R must be at least 1, got cores {list(cores.shape)}")
    check_shape("mode_update", "cores", cores, [count, *[rank] * (cores.dim() - 1)], like=x)
    if u is not None:
        check_shape("mode_update", "u", u, [rank, x.shape[-1]], like=x)
        if x.shape[-1] < 1:
            raise ValueError(f"mode_update: x must be [..., d_in] with d_in of at least 1, got {list(x.shape)}")
    elif x.shape[-1] != rank:
        raise ValueError(f"mode_update: x must be [..., R = {rank}] if u is None, got {list(x.shape)}")
    check_shape("mode_update", "v", v, [-1, rank], like=x)
    if bases is not None:
        if isinstance(bases, Tensor) or not isinstance(bases, Sequence):
            refuse("mode_update", "bases", f"a list of {count} tensors, one for each core, or None", bases)
        if len(bases) != count:
            got = len(bases) if isinstance(bases, list | tuple) else told(bases)
            raise ValueError(f"mode_update: bases must be {count} tensors, one for each core, got {got}")
        for k, base in enumerate(bases):
            check_shape("mode_update", f"bases[{k}]", base, [*x.shape[:-1], v.shape[0]], like=x)
    check_probability("mode_update", dropout=dropout)
    check_flag("mode_update", shared_mask=shared_mask)
    check_seed("mode_update", seed, x)


def _by_reference(
    x: Tensor, u: Any, v: Tensor, cores: Tensor, bases: Any, seed: Any, dropout: float, shared_mask: bool
) -> tuple[Tensor, ...]:
    """The reference on ``[N, d]`` views, factors cast to x's dtype."""
    u, v, cores = (cast(t, x.dtype) for t in (u, v, cores))
    shape = (*x.shape[:-1], v.shape[0])
    bases = [base.reshape(-1, v.shape[0]) for base in bases] or None
    rows = x.reshape(-1, x.shape[-1])
    outputs = reference.mode_update(rows, u, v, cores, bases, seed, dropout=dropout, shared_mask=shared_mask)
    return tuple(y.reshape(shape) for y in outputs)


def in_rows(bases: Sequence[Tensor], dtype: torch.dtype) -> list[Any]:
    """``bases`` as the operator takes them: of ``dtype``, with dense rows as far apart in all of them."""
    if torch.compiler.is_compiling():
        return operands(bases, dtype)  # a look at strides would fix sizes
    strides = {row_stride(base) for base in bases}
    alike = len(strides) == 1 and None not in strides and all(base.dtype == dtype for base in bases)
    return list(bases) if alike else operands(bases, dtype)


def row_stride(base: Tensor) -> int | None:
    """Values between two rows of ``base [..., d_out]``, or None if its rows are not dense or not evenly apart."""
    if base.is_contiguous():
        return base.shape[-1]
    *outer, width = base.shape
    *steps, last = base.stride()
    if last != 1 and width > 1:
        return None
    stride = following = None
    for size, step in zip(reversed(outer), reversed(steps), strict=True):
        if size == 1:
            continue
        if stride is None:
            stride = following = step
        if step != following or stride < width:
            return None
        following = step * size
    return width if stride is None else stride


class _ModeUpdate(Differentiable):
    """(x Uᵀ, y_0, ..., y_(K-1)). Keeps what exists anyway (x, factors), x Uᵀ and the seed; the gradients of ``bases``
    are those of the results."""

    LEAVES = slice(4)

    @staticmethod
    def prepare(inputs: tuple[Any, ...], copies: Any) -> tuple[Any, ...]:
        x, *rest = inputs
        factors = operands(rest[:3], x.dtype) if copies is None else operands(copies, x.dtype)
        return (*operands((x,), x.dtype), *factors, *rest[3:6], *in_rows(rest[6:], x.dtype))

    @staticmethod
    def forward(
        x: Tensor,
        u: Tensor | None,
        v: Tensor,
        cores: Tensor,
        seed: Tensor | None,
        dropout: float,
        shared_mask: bool,
        *bases: Tensor,
    ) -> tuple[Tensor, ...]:
        factors, given = operands((x, u, v, cores), x.dtype), in_rows(bases, x.dtype)
        return tuple(torch.ops.petx.mode_update_fwd(*factors, given, seed, dropout, shared_mask))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.options, ctx.dtypes = inputs[5:7], dtypes_of(inputs[:4])
        ctx.save_for_backward(*inputs[:5], output[0])
        ctx.mark_non_differentiable(output[0])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: None, *douts: Tensor | None) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad
        grads: list[Tensor | None] = [None] * 4
        given = {k: dout for k, dout in enumerate(douts) if dout is not None}
        bits = needed_bits(needs[:4])
        if given and bits:
            if is_vmapped(given.values()):
                *leaves, seed, _ = ctx.saved_tensors
                batched = copied(batched_grads(given, leaves, seed, needs[:4], *ctx.options), ctx.dtypes)
                return (*batched, None, None, None, *_passed(douts, needs))
            # What the frozen projections get is contiguous, too, so that they need not copy it again.
            given = {k: dout.contiguous() for k, dout in given.items()}
            douts = tuple(given.get(k) for k in range(len(douts)))
            x, *factors, seed, hidden = ctx.saved_tensors
            found = torch.ops.petx.mode_update_bwd(
                list(given.values()),
                sum(1 << k for k in given),
                x.contiguous(),
                *operands(factors, x.dtype),
                seed,
                hidden,
                bits,
                narrow_bits(ctx.dtypes, x.dtype),
                *ctx.options,
            )
            grads = as_leaves(found, ctx.dtypes, needs)
        return (*grads, None, None, None, *_passed(douts, needs))


def _passed(douts: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor | None]:
    """The gradients of the bases."""
    return [dout if need else None for dout, need in zip(douts, needs[7:], strict=False)]


def batched_grads(
    given: dict[int, Tensor],
    leaves: Sequence[Tensor | None],
    seed: Tensor | None,
    needs: Sequence[bool],
    dropout: float,
    shared_mask: bool,
) -> list[Tensor | None]:
    """Gradients of ``leaves``, x, u, v and cores, from those of the results by number, which are a batch."""

    def definition(x: Tensor, u: Tensor | None, v: Tensor, cores: Tensor) -> tuple[Tensor, ...]:
        return _by_reference(x, u, v, cores, (), seed, dropout, shared_mask)

    return grads_by(definition, leaves, needs, given)


def _shapes(given: SimpleNamespace) -> list[Tensor]:
    """x Uᵀ, and the K results."""
    x, cores = given.x, given.cores
    hidden = x.new_empty(0 if given.u is None else math.prod(x.shape[:-1]), cores.shape[1])
    return [hidden, *(x.new_empty(*x.shape[:-1], given.v.shape[0]) for _ in range(cores.shape[0]))]


OPERATION = Operation("mode_update", ("x", "u", "v", "cores"), activations=("x",), rank_dim=-1, shapes=_shapes)
