"""PETAL's low-rank update beside the frozen projections of one input: one differentiable function."""

import math

import torch
from torch.autograd.function import once_differentiable

from petx import ops, reference
from petx.functional._arguments import autocast_dtype, cast, checked_dropout, checked_seed, checked_shape, operands
from petx.functional._autograd import MISFITS, Differentiable, guarded, operator_checks, straight

__all__ = ["mode_update"]

MOST_MODES = 4


def mode_update(x, u, v, cores, bases=None, *, dropout=0.0, shared_mask=False, seed=None):
    """``y_k = base_k + drop_k(x Uᵀ) M_k Vᵀ`` for the K projections of one input (PETAL, arXiv 2312.12458).

    Args:
        x: ``[..., d_in]``. Floating; its dtype is the compute and output dtype (under autocast, the autocast dtype).
        u: ``[R, d_in]``, or None where ``x`` is already projected, ``[..., R]``: so one product serves several calls.
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
    if seed is None and dropout == 0 and straight("mode_update", x):
        try:
            if x.dtype is v.dtype and x.is_contiguous():
                given = () if bases is None else bases
                return tuple(torch.ops.petx.mode_update_fwd(x, u, v, cores, given, None, 0.0, shared_mask)[1:])
        except MISFITS:
            pass
    arguments = (x, u, v, cores, bases, dropout, seed)
    if not operator_checks("mode_update", x):
        check(*arguments)
        return _run(*arguments, shared_mask)
    if seed is not None:
        checked_seed("mode_update", seed, x.device)
    return guarded(_run, check, arguments, shared_mask)


def _run(x, u, v, cores, bases, dropout, seed, shared_mask):
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
    if not ops.takes("mode_update", x) or torch._C._are_functorch_transforms_active():
        return _by_reference(x, u, v, cores, bases, seed, dropout, shared_mask)
    leaves = (x, u, v, cores, *bases)
    return _ModeUpdate.call(leaves, x, u, v, cores, seed, float(dropout), shared_mask, *bases)[1:]


def check(x, u, v, cores, bases, dropout, seed):
    """Raise ValueError where an argument does not fit the others."""
    for name, tensor in (("x", x), ("cores", cores)):
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"mode_update: {name} must be a tensor, got {type(tensor).__name__}")
    if x.dim() < 1 or not x.is_floating_point():
        raise ValueError(f"mode_update: x must be floating [..., d_in], got {x.dtype} {list(x.shape)}")
    if cores.dim() not in (2, 3) or not 1 <= cores.shape[0] <= MOST_MODES:
        raise ValueError(f"mode_update: cores must be [K, R, R] or [K, R] with K from 1 to 4, got {list(cores.shape)}")
    count, rank = cores.shape[0], cores.shape[-1]
    if rank < 1:
        raise ValueError(f"mode_update: the rank R must be at least 1, got cores {list(cores.shape)}")
    checked_shape("mode_update", "cores", cores, [count, *[rank] * (cores.dim() - 1)], like=x)
    if u is not None:
        checked_shape("mode_update", "u", u, [rank, x.shape[-1]], like=x)
    elif x.shape[-1] != rank:
        raise ValueError(f"mode_update: x must be [..., R = {rank}] where u is None, got {list(x.shape)}")
    checked_shape("mode_update", "v", v, [-1, rank], like=x)
    if bases is not None:
        if len(bases) != count:
            raise ValueError(f"mode_update: bases must be {count} tensors, one for each core, got {len(bases)}")
        for k, base in enumerate(bases):
            checked_shape("mode_update", f"bases[{k}]", base, [*x.shape[:-1], v.shape[0]], like=x)
    checked_dropout("mode_update", dropout)
    checked_seed("mode_update", seed, x.device)


def _by_reference(x, u, v, cores, bases, seed, dropout, shared_mask):
    """The reference on ``[N, d]`` views, factors cast to x's dtype."""
    u, v, cores = (cast(t, x.dtype) for t in (u, v, cores))
    shape = (*x.shape[:-1], v.shape[0])
    bases = [base.reshape(-1, v.shape[0]) for base in bases] or None
    rows = x.reshape(-1, x.shape[-1])
    outputs = reference.mode_update(rows, u, v, cores, bases, seed, dropout=dropout, shared_mask=shared_mask)
    return tuple(y.reshape(shape) for y in outputs)


class _ModeUpdate(Differentiable):
    """(x Uᵀ, y_0, ..., y_(K-1)). Keeps what exists anyway (x, factors), x Uᵀ and the seed; the gradients of ``bases``
    are those of the results."""

    @staticmethod
    def forward(x, u, v, cores, seed, dropout, shared_mask, *bases):
        x, u, v, cores, *bases = operands((x, u, v, cores, *bases), x.dtype)
        return tuple(torch.ops.petx.mode_update_fwd(x, u, v, cores, bases, seed, dropout, shared_mask))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.options = inputs[5:7]
        ctx.save_for_backward(*inputs[:5], output[0])
        ctx.mark_non_differentiable(output[0])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx, _, *douts):
        needs, grads = ctx.needs_input_grad, [None] * 4
        used = [k for k, dout in enumerate(douts) if dout is not None]
        bits = sum(1 << i for i in range(4) if needs[i])
        if used and bits:
            x, *factors, seed, hidden = ctx.saved_tensors
            grads = torch.ops.petx.mode_update_bwd(
                [douts[k].contiguous() for k in used],
                sum(1 << k for k in used),
                x.contiguous(),
                *operands(factors, x.dtype),
                seed,
                hidden,
                bits,
                *ctx.options,
            )
            grads = [cast(g, t.dtype) if n else None for g, t, n in zip(grads, (x, *factors), needs, strict=False)]
        passed = [dout if need else None for dout, need in zip(douts, needs[7:], strict=False)]
        return (*grads, None, None, None, *passed)


def _fwd_fake(x, u, v, cores, bases, *_):
    hidden = x.new_empty(0 if u is None else math.prod(x.shape[:-1]), cores.shape[1])
    return [hidden, *(x.new_empty(*x.shape[:-1], v.shape[0]) for _ in range(cores.shape[0]))]


def _bwd_fake(douts, used, x, u, v, cores, seed, h, needs, *_):
    compute = torch.promote_types(x.dtype, torch.float32)
    return tuple(
        x.new_empty((0,) if t is None or not needs >> i & 1 else t.shape, dtype=compute if i else x.dtype)
        for i, t in enumerate((x, u, v, cores))
    )


ops.register("mode_update", _fwd_fake, _bwd_fake)
