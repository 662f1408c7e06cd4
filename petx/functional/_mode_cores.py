"""PETAL's cores: every mode vector's contraction with the shared core tensor, behind a learnable threshold."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from petx import reference
from petx._checks import LARGEST, check_floating, check_shape, refuse
from petx.functional._operation import ARGUMENT_ERRORS, NUMBERS, Operation, cast
from petx.functional._threshold import THRESHOLDS, check_threshold

__all__ = ["mode_cores"]


def mode_cores(
    core: Tensor, modes: Tensor, threshold: Tensor | None = None, *, gate: str = "none", temperature: float = 1.0
) -> Tensor:
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
    checked = type(temperature) in NUMBERS and temperature <= LARGEST and type(gate) is str and gate in THRESHOLDS
    if checked and OPERATION.can_try_fast_path(core, core):
        try:
            if core.dtype == modes.dtype:
                return torch.ops.petx.mode_cores_fwd(core, modes, threshold, THRESHOLDS.index(gate), temperature)
        except ARGUMENT_ERRORS:
            pass
    arguments = (core, modes, threshold, gate, temperature)
    return OPERATION.call_or_explain(core, core, _run, check, arguments, check_first=not checked)


def check(core: Any, modes: Any, threshold: Any, gate: Any, temperature: Any) -> None:
    """Raise ValueError if an argument does not fit the others."""
    check_floating("mode_cores", "core", core, "[R, R, R] or [R]")
    if core.dim() not in (1, 3) or len(set(core.shape)) != 1 or core.shape[0] < 1 or not core.is_floating_point():
        refuse("mode_cores", "core", "floating [R, R, R] or [R]", core)
    rank = core.shape[0]
    check_shape("mode_cores", "modes", modes, [-1, rank], like=core)
    check_threshold("mode_cores", threshold, gate, temperature, (rank,), core)


def _run(core: Tensor, modes: Tensor, threshold: Tensor | None, gate: str, temperature: float) -> Tensor:
    if OPERATION.runs_reference(core, core):
        modes, threshold = cast(modes, core.dtype), cast(threshold, core.dtype)
        with torch.autocast(core.device.type, enabled=False):
            return reference.mode_cores(core, modes, threshold, gate=gate, temperature=temperature)
    return OPERATION.differentiable(core, modes, threshold, THRESHOLDS.index(gate), float(temperature))


def _shapes(given: SimpleNamespace) -> Tensor:
    core = given.core
    return core.new_empty(given.modes.shape[0], *core.shape[1:] if core.dim() > 1 else core.shape)


# It keeps its inputs and nothing else.
OPERATION = Operation("mode_cores", ("core", "modes", "threshold"), rank_dim=0, shapes=_shapes)
