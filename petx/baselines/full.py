"""Full tuning."""

from typing import Any

from torch import nn

from petx.baselines.base import Baseline
from petx.errors import UserError
from petx.hosts import Host
from petx.options import option


class Full(Baseline):
    """What the papers call full tuning: the whole model, or the Q-Former with its queries and projection."""

    name, title, colour, order, lr = "full", "full tuning{full_words}", "#009E73", 60, "lr_full"
    own = ("full_vision_norm",)  # of PETAL's settings
    options = {"lr_full": (float, option(1e-3, "peak learning rate of full tuning, and from scratch", above=0))}

    def build(self, host: type[Host], model: nn.Module, settings: Any) -> nn.Module:
        model.requires_grad_(False)
        for parameter in host.full(model):
            parameter.requires_grad_(True)
        if getattr(settings, "full_vision_norm", False):
            norm = host.vision_norm(model)
            if norm is None:
                raise UserError(f"full_vision_norm: this {host.words} has no norm behind its image encoder")
            norm.requires_grad_(True)
        return model


BASELINE = Full()
