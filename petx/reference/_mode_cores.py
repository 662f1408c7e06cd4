"""Definition of `mode_cores`."""

import torch
from torch import Tensor

from petx.reference._threshold_gate import threshold_gate

__all__ = ["mode_cores"]


def mode_cores(
    core: Tensor, modes: Tensor, threshold: Tensor | None = None, *, gate: str = "none", temperature: float = 1.0
) -> Tensor:
    """The cores of all modes, ``M_n = gate(C) ×₃ p_n`` (PETAL, arXiv 2312.12458, dynamic mode approximation).

    core [R, R, R], modes [n, R] -> [n, R, R]; or the CP weights core [R] -> [n, R], the diagonals. ``threshold`` [1],
    or [R] for the last index.
    """
    core = threshold_gate(core, threshold, gate, temperature)
    if core.dim() == 1:
        return core * modes
    return torch.einsum("ijk,nk->nij", core, modes)
