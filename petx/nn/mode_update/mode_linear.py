"""A frozen linear layer with PETAL's update (arXiv 2312.12458)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petx import functional
from petx._checks import check_flag, check_size, refuse
from petx.functional._operation import ARGUMENT_ERRORS
from petx.nn._modes import new_mode, reset_mode
from petx.nn._parameters import Device, check_input, parameters_of, place_of
from petx.nn.mode_update.mode_factors import Adapted, ModeFactors

__all__ = ["ModeLinear"]


class ModeLinear(nn.Linear, Adapted):
    r"""A frozen linear with PETAL's update, ``y = W x + b + V M(p)ᵀ drop(U x)``, ``M(p) = gate(C) ×₃ p`` (PETAL, arXiv
    2312.12458, dynamic mode approximation).

    Args:
        in_features, out_features, bias: as in :class:`torch.nn.Linear`, whose state loads with ``strict=False``:
            ``weight`` and ``bias`` have its names and do not require a gradient.
        rank: R.
        factors: a :class:`ModeFactors` to share with other layers; a new one by default.
        dropout: of U x, while training.
        options: ``core``, ``threshold``, ``per_rank``, ... of :class:`ModeFactors` for new factors.

    Equal to torch's Linear until ``factors.v`` leaves zero. Shape: ``[..., in_features]`` to ``[..., out_features]``.

    Raises ValueError naming the argument, what came and what was wanted.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        *,
        factors: ModeFactors | None = None,
        dropout: float = 0.0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        place = place_of("ModeLinear", device, dtype)
        check_flag("ModeLinear", bias=bias)
        check_size("ModeLinear", in_features=in_features, out_features=out_features, rank=rank)
        super().__init__(in_features, out_features, bias, **place)
        self._set_up(in_features, out_features, rank, factors, dropout, False, options, place)
        self.mode = new_mode(rank, **place)
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                parameter.requires_grad_(False)

    @classmethod
    def from_linear(cls, linear: nn.Linear, rank: int, **options: Any) -> "ModeLinear":
        """A layer around the weight and bias of ``linear``, a :class:`torch.nn.Linear`, which are frozen by it."""
        if not isinstance(linear, nn.Linear):
            refuse("ModeLinear", "linear", "a torch.nn.Linear", linear)
        place: dict[str, Any] = dict(device=linear.weight.device, dtype=linear.weight.dtype)
        layer = cls(linear.in_features, linear.out_features, rank, linear.bias is not None, **place | options)
        layer.weight, layer.bias = linear.weight, linear.bias
        for parameter in (layer.weight, layer.bias):
            if parameter is not None:
                parameter.requires_grad_(False)
        return layer.train(linear.training)

    def reset_parameters(self) -> None:
        """The linear as torch does it; the mode vector, and the factors, shared or not, as in their classes."""
        super().reset_parameters()
        if hasattr(self, "mode"):
            reset_mode(self.mode)
            self.factors.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in_features]`` gives ``[..., out_features]``."""
        weight, bias, mode = parameters_of(self, "weight", "bias", "mode")
        try:
            base = F.linear(x, weight, bias)
        except ARGUMENT_ERRORS:
            check_input("ModeLinear", "x", x, self.in_features)
            raise
        (y,) = self._update(x, mode.unsqueeze(0), [base])
        return y

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """``W + V M(p)ᵀ U`` ``[out_features, in_features]``, the weight of a plain linear that computes the same."""
        cores = self.factors.cores(self.mode.unsqueeze(0))
        return functional.cp_reconstruct([self.weight], self.factors.u, self.factors.v, cores)[0]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, dropout={self.dropout}"
