"""The head of a Q-Former."""

from typing import Any

from torch import nn

from petx.baselines.base import Baseline
from petx.hosts import Host
from petx.options import option


class Head(Baseline):
    """The first linear of the query FFN of the Q-Former's last layer."""

    name, title, order, lr = "head", "head", 50, "lr_head"
    methods, needs_qformer = ("petal",), True
    options = {"lr_head": (float, option(3e-3, "peak learning rate of the head", above=0))}

    def build(self, host: type[Host], model: Any, settings: Any) -> nn.Module:
        model.requires_grad_(False)
        model.qformer.encoder.layer[-1].intermediate_query.requires_grad_(True)
        return model


BASELINE = Head()
