"""PETAL's low-rank update beside the frozen projections of one input: one differentiable function."""

import torch

from petx import reference
from petx.functional._arguments import autocast_dtype, cast, checked_dropout, checked_shape

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
    rank = check(x, u, v, cores, bases, dropout)
    dtype = autocast_dtype(x)
    if dropout > 0 and seed is None:
        seed = torch.randint(2**62, (1,), dtype=torch.int64, device=x.device)
    x, u, v, cores = (cast(t, dtype) for t in (x, u, v, cores))
    shape = x.shape
    rows = x.reshape(-1, shape[-1] if u is not None else rank)
    if bases is not None:
        bases = [cast(base, dtype).reshape(-1, v.shape[0]) for base in bases]
    outputs = reference.mode_update(rows, u, v, cores, bases, seed, dropout=dropout, shared_mask=shared_mask)
    return tuple(y.reshape(*shape[:-1], v.shape[0]) for y in outputs)


def check(x, u, v, cores, bases, dropout):
    """Raise ValueError where an argument does not fit the others; returns the rank R."""
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
    return rank
