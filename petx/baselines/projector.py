"""The projector between image and language alone."""

from typing import Any

from torch import nn

from petx.baselines.base import Baseline
from petx.hosts import Host
from petx.options import option


class Projector(Baseline):
    """The visual embedding alone, which every tuned row of VL-PET's table trains."""

    name, title, order, lr = "projector", "visual projector alone", 10, "lr_projector"
    methods = ("vlpet",)
    options = {"lr_projector": (float, option(3e-3, "peak learning rate of the projector alone", above=0))}

    def misfit(self, host: type[Host]) -> str | None:
        return None if host.has_new else "a projector that is new to it"

    def build(self, host: type[Host], model: nn.Module, settings: Any) -> nn.Module:
        model.requires_grad_(False)
        for module in host.always(model):
            module.requires_grad_(True)
        return model


BASELINE = Projector()
