"""PETAL's adapted weights written out, for all modules that share factors at once."""

from petx import reference
from petx.functional._arguments import cast, checked_finite, checked_shape, checked_threshold

__all__ = ["cp_reconstruct"]


def cp_reconstruct(weights, u, v, cores, threshold=None, *, gate="none", temperature=1.0, scale=1.0):
    r"""``W'_k = W_k + gate(scale · V M_kᵀ U)`` entry by entry, for K frozen weights (PETAL, arXiv 2312.12458).

    The update's low-rank form is :func:`mode_update`; this one is for merging, and for a gate on the entries of ΔW.

    Args:
        weights: K tensors ``[d_out, d_in]`` of one dtype, the compute and output dtype.
        u: ``[R, d_in]``. v: ``[d_out, R]``. cores: ``[K, R, R]``, or their diagonals ``[K, R]``.
        threshold: Γ, ``[1]`` or ``[K]``, one for each weight; None with ``gate="none"``.
        gate: ``"none"``; ``"soft"``, sign(w) max(\|w\| - Γ, 0); ``"sigmoid"``, w σ((\|w\| - Γ) / temperature); or
            ``"hard"``, w where \|w\| > Γ, with the gradient passed straight through to w and the soft gate's to Γ.
        temperature: of the sigmoid, positive. scale: a constant factor of the update.

    Returns a tuple of K tensors ``[d_out, d_in]``. The sum is made in float32 (float64 for float64) and rounded once
    to the weights' dtype: in bfloat16 an update below 2⁻⁹ of its weight is lost, so merge in float32 where that
    matters. Gradients flow to weights, factors and threshold, in their own dtypes. Not twice differentiable.

    Raises ValueError naming the argument, what came and what was wanted.
    """
    weights = check(weights, u, v, cores, threshold, gate, temperature, scale)
    dtype = weights[0].dtype
    u, v, cores, threshold = (cast(t, dtype) for t in (u, v, cores, threshold))
    return reference.cp_reconstruct(
        weights, u, v, cores, threshold, gate=gate, temperature=temperature, scale=float(scale)
    )


def check(weights, u, v, cores, threshold, gate, temperature, scale):
    """Raise ValueError where an argument does not fit the others; returns the weights as a tuple."""
    weights = tuple(weights)
    if not weights:
        raise ValueError("cp_reconstruct: weights must be at least one tensor [d_out, d_in], got none")
    first = weights[0]
    if first.dim() != 2 or not first.is_floating_point():
        got = f"{first.dtype} {list(first.shape)}"
        raise ValueError(f"cp_reconstruct: weights[0] must be floating [d_out, d_in], got {got}")
    for k, weight in enumerate(weights):
        checked_shape("cp_reconstruct", f"weights[{k}]", weight, list(first.shape), like=first)
        if weight.dtype != first.dtype:
            raise ValueError(
                f"cp_reconstruct: weights[{k}] must have the first's dtype {first.dtype}, got {weight.dtype}"
            )
    if cores.dim() not in (2, 3) or cores.shape[0] != len(weights) or cores.shape[-1] < 1:
        wanted = f"[{len(weights)}, R, R] or [{len(weights)}, R]"
        raise ValueError(f"cp_reconstruct: cores must be {wanted}, one for each weight, got {list(cores.shape)}")
    rank = cores.shape[-1]
    checked_shape("cp_reconstruct", "cores", cores, [len(weights), *[rank] * (cores.dim() - 1)], like=first)
    checked_shape("cp_reconstruct", "u", u, [rank, first.shape[1]], like=first)
    checked_shape("cp_reconstruct", "v", v, [first.shape[0], rank], like=first)
    checked_threshold("cp_reconstruct", threshold, gate, temperature, (len(weights),), first)
    checked_finite("cp_reconstruct", scale=scale)
    return weights
