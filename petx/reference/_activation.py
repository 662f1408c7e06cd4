"""GELU as the operations have it."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["gelu"]


def gelu(z: Tensor, activation: str) -> Tensor:
    """GELU, exact (``"gelu"``) or by the tanh approximation (``"gelu_tanh"``, the released code's ``gelu_new``)."""
    return F.gelu(z, approximate="tanh" if activation == "gelu_tanh" else "none")
