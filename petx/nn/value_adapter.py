"""Drop-in modules for VL-PET's decoder module beside value projections (arXiv 2308.09804, section 3.4)."""

from typing import Any

import torch
from torch import Tensor, nn

from petx import functional
from petx._checks import check_choice, check_finite, check_flag, check_not_negative, check_size
from petx.functional._gated_adapter_options import OPTIONS
from petx.functional._operation import ARGUMENT_ERRORS
from petx.functional._value_adapter import check_value
from petx.nn._parameters import Device, place_of
from petx.nn.gated_adapter import GatedAdapter

__all__ = ["ValueAdapter", "ValueAdapters"]


class ValueAdapter(GatedAdapter):
    r"""VL-PET's decoder module beside a frozen value projection,
    :math:`V = v + \mathrm{up}(\mathrm{gelu}(\mathrm{down}(e)))`.

    ``e [..., L, in_features]`` is the encoder output, ``v [..., L, out_features]`` the frozen projection of it
    (arXiv 2308.09804, section 3.4). Parallel, one head, no gate, s = 1; other options as in :class:`GatedAdapter`.

    Raises ValueError naming the argument, what came and what was wanted.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, *, heads: int = 1, **options: Any) -> None:
        check_size("ValueAdapter", in_features=in_features, out_features=out_features, rank=rank)
        given: dict[str, Any] = {"granularity": "none", "placement": "parallel", "x_features": in_features} | options
        super().__init__(out_features, rank, heads, **given)

    def forward(self, e: Tensor, v: Tensor, padding_mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """``e [..., L, in_features]`` and ``v [..., L, out_features]`` give ``[..., L, out_features]``."""
        try:
            return super().forward(v, e, padding_mask)
        except ARGUMENT_ERRORS:
            check_value("ValueAdapter", e, v)
            raise


class ValueAdapters(nn.Module):
    r"""The :class:`ValueAdapter` of every decoder layer in one operation, since all read one encoder output
    (arXiv 2308.09804, section 3.4).

    ``e [..., L_e, in_features]`` is the encoder output, ``v [..., L_e, layers, out_features]`` the frozen value
    projections of it, as one GEMM with the layers' weights stacked gives them. Each layer has its own parameters,
    stacked: ``down_weight [layers, rank, in_features]``, ``up_weight [layers, out_features, rank]`` and their biases.
    Weights start at N(0, ``init_std``²), biases at zero; ``zero_init_up`` starts the up projections at zero.

    Raises ValueError naming the argument, what came and what was wanted.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        layers: int,
        *,
        bias: bool = True,
        activation: str = "gelu_tanh",
        scale: float = 1.0,
        init_std: float = 0.02,
        zero_init_up: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        owner = "ValueAdapters"
        check_size(owner, in_features=in_features, out_features=out_features, rank=rank, layers=layers)
        check_choice(owner, "activation", activation, OPTIONS["activation"])
        check_flag(owner, bias=bias, zero_init_up=zero_init_up)
        check_finite(owner, scale=scale)
        check_not_negative(owner, init_std=init_std)
        place = place_of(owner, device, dtype)
        self.in_features, self.out_features, self.rank, self.layers = in_features, out_features, rank, layers
        self.activation, self.scale, self.init_std, self.zero_init_up = activation, float(scale), init_std, zero_init_up
        self.down_weight = nn.Parameter(torch.empty(layers, rank, in_features, **place))
        self.up_weight = nn.Parameter(torch.empty(layers, out_features, rank, **place))
        self.down_bias = nn.Parameter(torch.empty(layers, rank, **place)) if bias else None
        self.up_bias = nn.Parameter(torch.empty(layers, out_features, **place)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.down_weight.normal_(0, self.init_std)
        self.up_weight.normal_(0, self.init_std)
        if self.zero_init_up:
            self.up_weight.zero_()
        for bias in (self.down_bias, self.up_bias):
            if bias is not None:
                bias.zero_()

    def forward(self, e: Tensor, v: Tensor) -> Tensor:
        """``e [..., L_e, in_features]`` and ``v [..., L_e, layers, out_features]`` give v's shape."""
        return functional.value_adapters(
            e,
            v,
            self.down_weight,
            self.down_bias,
            self.up_weight,
            self.up_bias,
            activation=self.activation,
            scale=self.scale,
        )

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, rank={self.rank}, layers={self.layers}"
