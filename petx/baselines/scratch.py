"""Full tuning of everything, from random weights or with the language model."""

from typing import Any, ClassVar

from torch import nn

from petx.baselines.base import Baseline
from petx.hosts import Host


class Everything(Baseline):
    """Full tuning of the language model, too."""

    name, title, colour, order, lr = "everything", "full tuning, language model too", "#000000", 80, "lr_full"
    methods: ClassVar[tuple[str, ...]] = ("petal",)

    def build(self, host: type[Host], model: nn.Module, settings: Any) -> nn.Module:
        model.requires_grad_(False)
        for parameter in host.everything(model):
            parameter.requires_grad_(True)
        return model


class Scratch(Everything):
    """The whole small host, trained from random weights."""

    name, title, colour, order = "scratch", "full training from scratch", "#CC79A7", 90
    methods = ("vlpet", "petal")
    random_host = True


BASELINES = [Everything(), Scratch()]
