"""PETAL's query transformation, a small residual by channel."""

import torch
from torch import Tensor, nn

from petx import functional
from petx._checks import check_finite, check_not_negative, check_size, refuse
from petx.nn._parameters import Device, check_input, parameters_of, place_of

__all__ = ["QueryTransformation"]


class QueryTransformation(nn.Module):
    r"""``0.1 (x ⊙ a + b)``, to be added to a layer's output; x is its self-attention block's output.

    From Aurora's gated query transformation, as in PETAL's released code.

    Args:
        features: width d. factor: the 0.1.
        init_std: a and b start as N(0, ``init_std``²).

    Zero if a and b are. Shape: ``[..., d]`` to ``[..., d]``; given ``to`` of the same shape, the sum is returned.
    Any floating dtype; the parameters may be of another, and their gradients come back in it.

    Raises ValueError naming the argument, what came and what was wanted.
    """

    def __init__(
        self,
        features: int,
        *,
        factor: float = 0.1,
        init_std: float = 0.0002,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("QueryTransformation", features=features)
        check_finite("QueryTransformation", factor=factor)
        check_not_negative("QueryTransformation", init_std=init_std)
        place = place_of("QueryTransformation", device, dtype)
        self.features, self.factor, self.init_std = features, float(factor), init_std
        self.scale = nn.Parameter(torch.empty(features, **place))
        self.shift = nn.Parameter(torch.empty(features, **place))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.scale.normal_(0, self.init_std)
        self.shift.normal_(0, self.init_std)

    def forward(self, x: Tensor, to: Tensor | None = None) -> Tensor:
        """``x [..., d]`` gives the residual ``[..., d]``, or with ``to [..., d]`` the sum of both."""
        check_input("QueryTransformation", "x", x, self.features)
        if to is not None and not (isinstance(to, Tensor) and to.shape == x.shape):
            refuse("QueryTransformation", "to", f"a tensor {list(x.shape)} like x, or None", to)
        scale, shift = parameters_of(self, "scale", "shift")
        return functional.query_transformation(x, scale, shift, to, factor=self.factor)

    def extra_repr(self) -> str:
        return f"features={self.features}, factor={self.factor}"
