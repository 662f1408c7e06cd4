"""The temperature of a contrastive loss, learnt."""

import math

import torch
from torch import Tensor, nn

from petx._checks import check_floating

__all__ = ["Temperature"]

MOST_SCALE = 100.0  # 1 / temperature is at most this, as CLIP's


class Temperature(nn.Module):
    """Similarities ``[...]`` divided by a learnt temperature, 0.07 at first and at least 0.01; log 1/τ is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.log_scale, math.log(1 / 0.07))

    def forward(self, similarity: Tensor) -> Tensor:
        """``similarity [...] / τ``, of its dtype: ``[...]``."""
        check_floating("Temperature", "similarity", similarity, "[...]")
        log_scale: Tensor = self.log_scale
        most = math.log(MOST_SCALE)
        if self.training:  # the parameter itself, as CLIP's: beyond the bound it would have no gradient to come back by
            with torch.no_grad():
                log_scale.clamp_(max=most)
        else:  # only here, since from torch 2.14 on a clamp's gradient at the bound is zero
            log_scale = log_scale.clamp(max=most)
        return similarity * log_scale.exp().to(similarity.dtype)
