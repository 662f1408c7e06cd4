"""Mode vectors and the initial values that the layers and the tuner share."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from petx.nn._parameters import Device


def new_mode(rank: int, device: Device = None, dtype: torch.dtype | None = None) -> nn.Parameter:
    """A mode vector ``[R]``, Xavier uniform of a column, U(±√(6 / (R + 1)))."""
    mode = nn.Parameter(torch.empty(rank, device=device, dtype=dtype))
    reset_mode(mode)
    return mode


@torch.no_grad()
def reset_mode(mode: Tensor) -> None:
    bound = math.sqrt(6 / (mode.numel() + 1))
    mode.uniform_(-bound, bound)


@torch.no_grad()
def reset_factors(u: Tensor, outputs: Iterable[Tensor]) -> None:
    """``u [R, d_in]`` as torch's Linear, U(±1 / √d_in); every V of ``outputs`` zero, so that an update is zero."""
    bound = 1 / math.sqrt(u.shape[1])
    u.uniform_(-bound, bound)
    for v in outputs:
        v.zero_()
