"""PETAL's cores: every mode vector's contraction with the shared core tensor, behind a learnable threshold."""

from petx import reference
from petx.functional._arguments import cast, checked_shape, checked_threshold

__all__ = ["mode_cores"]


def mode_cores(core, modes, threshold=None, *, gate="none", temperature=1.0):
    r"""``M_n = gate(C) ×₃ p_n`` for all mode vectors at once (PETAL, arXiv 2312.12458, dynamic mode approximation).

    Args:
        core: ``[R, R, R]``, the full core, or ``[R]``, the weights λ of a CP decomposition.
        modes: ``[n, R]``, the mode vectors of all layers and projections, stacked.
        threshold: Γ, ``[1]`` or ``[R]`` (then for the core's last index); None with ``gate="none"``.
        gate: ``"none"``; ``"soft"``, sign(c) max(\|c\| - Γ, 0); ``"sigmoid"``, c σ((\|c\| - Γ) / temperature); or
            ``"hard"``, c where \|c\| > Γ, with the gradient passed straight through to c and the soft gate's to Γ.
        temperature: of the sigmoid, positive.

    Returns ``[n, R, R]``, for a core ``[R]`` the diagonals ``[n, R]``, in ``core``'s dtype, under autocast too:
    cores are small, and every row of an activation passes through them. Not twice differentiable.

    Raises ValueError naming the argument, what came and what was wanted.
    """
    if core.dim() not in (1, 3) or len(set(core.shape)) != 1 or core.shape[0] < 1 or not core.is_floating_point():
        raise ValueError(f"mode_cores: core must be floating [R, R, R] or [R], got {core.dtype} {list(core.shape)}")
    rank = core.shape[0]
    checked_shape("mode_cores", "modes", modes, [-1, rank], like=core)
    checked_threshold("mode_cores", threshold, gate, temperature, (rank,), core)
    return reference.mode_cores(
        core, cast(modes, core.dtype), cast(threshold, core.dtype), gate=gate, temperature=temperature
    )
