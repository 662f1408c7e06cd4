"""PETAL's shared core with its learnable threshold (arXiv 2312.12458, dynamic mode approximation)."""

import math

import torch
from torch import nn

from petx import functional
from petx.functional._arguments import GATES
from petx.nn._arguments import checked_option, checked_size, parameters_of

__all__ = ["ModeCores"]

FORMS = ("full", "diagonal")


class ModeCores(nn.Module):
    r"""The core that all layers share, and every mode vector's contraction with it, ``M_n = gate(C) ×₃ p_n``.

    Args:
        rank: R.
        form: ``"full"``, a core ``[R, R, R]`` (Tucker, the released code), or ``"diagonal"``, the weights λ ``[R]`` of
            a CP decomposition (the paper).
        threshold: gate of the entries by the learnable Γ: ``"none"``, ``"soft"``, ``"hard"`` or ``"sigmoid"``.
        per_rank: a Γ for every index of the rank instead of one for all.
        threshold_init: where Γ starts; at 0 the soft and the hard gate are the identity.
        temperature: of the sigmoid gate.

    Shape: modes ``[n, R]`` gives ``[n, R, R]``, or the diagonals ``[n, R]``. One call for the mode vectors of all
    layers is one product with the core.
    """

    def __init__(
        self,
        rank,
        *,
        form="full",
        threshold="none",
        per_rank=False,
        threshold_init=0.0,
        temperature=1.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        checked_size("ModeCores", rank=rank)
        checked_option("ModeCores", "form", form, FORMS)
        checked_option("ModeCores", "threshold", threshold, GATES)
        if not 0 < temperature < math.inf:
            raise ValueError(f"ModeCores: temperature must be positive, got {temperature}")
        self.rank, self.form, self.gate = rank, form, threshold
        self.threshold_init, self.temperature = float(threshold_init), float(temperature)
        place = dict(device=device, dtype=dtype)
        self.core = nn.Parameter(torch.empty([rank] * (3 if form == "full" else 1), **place))
        limits = rank if per_rank else 1
        gated = threshold != "none"
        self.register_parameter("threshold", nn.Parameter(torch.empty(limits, **place)) if gated else None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        """The full core Xavier uniform over [R, R · R] slices, U(±√3 / R); λ one; Γ at ``threshold_init``."""
        if self.form == "full":
            bound = math.sqrt(3) / self.rank
            self.core.uniform_(-bound, bound)
        else:
            self.core.fill_(1.0)
        if self.threshold is not None:
            self.threshold.fill_(self.threshold_init)

    def forward(self, modes):
        core, threshold = parameters_of(self, "core", "threshold")
        return functional.mode_cores(core, modes, threshold, gate=self.gate, temperature=self.temperature)

    def extra_repr(self):
        shown = f"rank={self.rank}, form={self.form!r}"
        if self.threshold is not None:
            shown += f", threshold={self.gate!r}, per_rank={self.threshold.numel() > 1}"
        return shown
