"""PETAL's query transformation, a small residual by channel."""

import torch
from torch import nn

from petx.nn._arguments import checked_size

__all__ = ["QueryTransformation"]


class QueryTransformation(nn.Module):
    r"""``0.1 (x ⊙ a + b)``, to be added to a layer's output; x is its self-attention block's output.

    From Aurora's gated query transformation, as in PETAL's released code.

    Args:
        features: width d. factor: the 0.1.
        init_std: a and b start as N(0, ``init_std``²).

    Zero where a and b are. Shape: ``[..., d]`` to ``[..., d]``; given ``to`` of the same shape, the sum is returned.
    """

    def __init__(self, features, *, factor=0.1, init_std=0.0002, device=None, dtype=None):
        super().__init__()
        checked_size("QueryTransformation", features=features)
        self.features, self.factor, self.init_std = features, float(factor), init_std
        self.scale = nn.Parameter(torch.empty(features, device=device, dtype=dtype))
        self.shift = nn.Parameter(torch.empty(features, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        self.scale.normal_(0, self.init_std)
        self.shift.normal_(0, self.init_std)

    def forward(self, x, to=None):
        scale, shift = (self.factor * t.to(x.dtype) for t in (self.scale, self.shift))
        residual = torch.addcmul(shift, x, scale)
        return residual if to is None else to + residual

    def extra_repr(self):
        return f"features={self.features}, factor={self.factor}"
