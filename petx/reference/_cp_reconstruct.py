"""Definition of `cp_reconstruct`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from petx.reference._threshold_gate import threshold_gate

__all__ = ["cp_reconstruct"]


def cp_reconstruct(
    weights: Sequence[Tensor],
    u: Tensor,
    v: Tensor,
    cores: Tensor,
    threshold: Tensor | None = None,
    *,
    gate: str = "none",
    temperature: float = 1.0,
    scale: float = 1.0,
) -> tuple[Tensor, ...]:
    """PETAL's weights written out: ``W'_k = W_k + gate(scale V M_kᵀ U)``, K matrices [d_out, d_in].

    u [R, d_in], v [d_out, R], cores [K, R, R] or their diagonals [K, R]; threshold [1] or [K]. Made in float32 (float64
    for float64) and rounded once.
    """
    dtype = weights[0].dtype
    wide = torch.promote_types(dtype, torch.float32)
    u, v, cores = u.to(wide), v.to(wide), cores.to(wide)
    results = []
    for k, weight in enumerate(weights):
        mixed = v * cores[k] if cores.dim() == 2 else v @ cores[k].T
        limit = None if threshold is None else threshold[k if threshold.numel() > 1 else 0].to(wide)
        update = threshold_gate(scale * (mixed @ u), limit, gate, temperature)
        results.append((weight.to(wide) + update).to(dtype))
    return tuple(results)
