"""BitFit: biases alone (arXiv 2106.10199)."""

from typing import Any

from torch import nn

from petx.baselines.base import Baseline
from petx.hosts import Host
from petx.options import option


class BitFit(Baseline):
    """The biases of what full tuning trains, and what is new to the host (the visual embedding)."""

    name, title, colour, order, lr = "bitfit", "BitFit", "#56B4E9", 54, "lr_bitfit"
    options = {"lr_bitfit": (float, option(3e-3, "peak learning rate of BitFit", above=0))}

    def misfit(self, host: type[Host]) -> str | None:
        return None if host.has_biases else "biases in its layers"

    def build(self, host: type[Host], model: nn.Module, settings: Any) -> nn.Module:
        model.requires_grad_(False)
        tuned = {id(parameter) for parameter in host.full(model)}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(id(parameter) in tuned and name.endswith("bias"))
        for module in host.always(model):
            module.requires_grad_(True)
        return model


BASELINE = BitFit()
