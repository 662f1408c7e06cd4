"""Compacter's projection (arXiv 2106.04647): a weight that is a sum of Kronecker products."""

import math

import torch
from torch import Tensor, nn

from petx._checks import check_flag, check_size
from petx.nn._parameters import Device, check_input, place_of

__all__ = ["PHMLinear"]


class PHMLinear(nn.Module):
    r"""A linear map with :math:`W = \sum_{i=1}^{n} A_i \otimes B_i`, ``A [n, n, n]``, ``B [n, out / n, in / n]``
    (Compacter, arXiv 2106.04647).

    Args:
        in_features, out_features: widths, both multiples of ``order``.
        order: n, the number of Kronecker products.
        bias: a bias ``[out]``.

    Only the weight is structured: :attr:`weight` is the dense ``[out, in]`` matrix, so any kernel that takes a weight
    takes this one, and autograd carries the gradient to the factors.
    Shape: ``[..., in_features]`` to ``[..., out_features]``.

    Raises ValueError naming the argument, what came and what was wanted.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        order: int = 2,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("PHMLinear", in_features=in_features, out_features=out_features, order=order)
        check_flag("PHMLinear", bias=bias)
        place = place_of("PHMLinear", device, dtype)
        if in_features % order or out_features % order:
            raise ValueError(
                f"PHMLinear: order must divide both widths, got order={order}, in_features={in_features}, "
                f"out_features={out_features}"
            )
        self.in_features, self.out_features, self.order = in_features, out_features, order
        self.rule = nn.Parameter(torch.empty(order, order, order, **place))
        self.factor = nn.Parameter(torch.empty(order, out_features // order, in_features // order, **place))
        self.bias = nn.Parameter(torch.empty(out_features, **place)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Rule N(0, 0.01²), factors Glorot uniform over the whole matrix, bias zero (Compacter's released settings)."""
        self.rule.normal_(0, 0.01)
        bound = math.sqrt(6 / (self.in_features + self.out_features))
        self.factor.uniform_(-bound, bound)
        if self.bias is not None:
            self.bias.zero_()

    @property
    def weight(self) -> Tensor:
        """Dense ``[out, in]`` weight."""
        return torch.einsum("nab,ncd->acbd", self.rule, self.factor).reshape(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in_features]`` gives ``[..., out_features]``."""
        check_input("PHMLinear", "x", x, self.in_features)
        return nn.functional.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, order={self.order}"
