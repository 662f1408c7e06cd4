"""PETAL's shared core with its learnable threshold (arXiv 2312.12458, dynamic mode approximation)."""

import math

import torch
from torch import Tensor, nn

from petx import functional
from petx._checks import check_choice, check_finite, check_flag, check_positive, check_size
from petx.functional._threshold import THRESHOLDS as THRESHOLDS
from petx.nn._parameters import Device, parameters_of, place_of

__all__ = ["ModeCores"]

FORMS = ("full", "diagonal")


class ModeCores(nn.Module):
    r"""The core that all layers share, and every mode vector's contraction with it, ``M_n = gate(C) ×₃ p_n`` (PETAL,
    arXiv 2312.12458, dynamic mode approximation).

    Args:
        rank: R.
        form: ``"full"``, a core ``[R, R, R]`` (Tucker, the released code), or ``"diagonal"``, the weights λ ``[R]`` of
            a CP decomposition (the paper).
        threshold: gate of the entries by the learnable Γ: ``"none"``, ``"soft"``, ``"hard"`` or ``"sigmoid"``.
        per_rank: a Γ for every index of the rank instead of one for all.
        threshold_init: the initial Γ; at 0 the soft and the hard gate are the identity.
        temperature: of the sigmoid gate.

    Shape: modes ``[n, R]`` gives ``[n, R, R]``, or the diagonals ``[n, R]``. One call for the mode vectors of all
    layers is one GEMM with the core. Modes may be of another floating dtype than the core, which the result has.

    Raises ValueError naming the argument, what came and what was wanted.
    """

    threshold: nn.Parameter | None

    def __init__(
        self,
        rank: int,
        *,
        form: str = "full",
        threshold: str = "none",
        per_rank: bool = False,
        threshold_init: float = 0.0,
        temperature: float = 1.0,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("ModeCores", rank=rank)
        check_choice("ModeCores", "form", form, FORMS)
        check_choice("ModeCores", "threshold", threshold, THRESHOLDS)
        check_flag("ModeCores", per_rank=per_rank)
        check_finite("ModeCores", threshold_init=threshold_init)
        check_positive("ModeCores", temperature=temperature)
        self.rank, self.form, self.gate = rank, form, threshold
        self.threshold_init, self.temperature = float(threshold_init), float(temperature)
        place = place_of("ModeCores", device, dtype)
        self.core = nn.Parameter(torch.empty([rank] * (3 if form == "full" else 1), **place))
        limits = rank if per_rank else 1
        gated = threshold != "none"
        self.register_parameter("threshold", nn.Parameter(torch.empty(limits, **place)) if gated else None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The full core Xavier uniform over [R, R · R] slices, U(±√3 / R); λ one; Γ at ``threshold_init``."""
        if self.form == "full":
            bound = math.sqrt(3) / self.rank
            self.core.uniform_(-bound, bound)
        else:
            self.core.fill_(1.0)
        if self.threshold is not None:
            self.threshold.fill_(self.threshold_init)

    def forward(self, modes: Tensor) -> Tensor:
        """``modes [n, R]`` gives the cores ``[n, R, R]``, or for the form ``"diagonal"`` their diagonals ``[n, R]``."""
        core, threshold = parameters_of(self, "core", "threshold")
        return functional.mode_cores(core, modes, threshold, gate=self.gate, temperature=self.temperature)

    def extra_repr(self) -> str:
        shown = f"rank={self.rank}, form={self.form!r}"
        if self.threshold is not None:
            shown += f", threshold={self.gate!r}, per_rank={self.threshold.numel() > 1}"
        return shown
