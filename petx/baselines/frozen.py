"""The host as it is."""

from typing import Any

from torch import nn

from petx.baselines.base import Baseline
from petx.hosts import Host


class Frozen(Baseline):
    """Nothing is trained: the pretrained host as it is."""

    name, title, order = "frozen", "frozen host", 0

    def owns(self) -> set[str]:
        return set()

    def build(self, host: type[Host], model: nn.Module, settings: Any) -> nn.Module:
        return model.requires_grad_(False)


BASELINE = Frozen()
