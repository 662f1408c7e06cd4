"""The method itself on a frozen host of random weights."""

from typing import Any

from torch import nn

from petx import baselines
from petx.baselines.base import Baseline
from petx.hosts import Host


class RandomHost(Baseline):
    """The method itself on a frozen small host of random weights."""

    name, title, colour, order = "random-host", "{main}, random frozen host", "#E69F00", 100
    random_host = True

    def owns(self) -> set[str]:
        return set()

    def reads(self, settings: Any) -> set[str]:
        return baselines.find(settings.recipe, settings.recipe).reads(settings)

    def build(self, host: type[Host], model: nn.Module, settings: Any) -> nn.Module:
        return baselines.find(settings.recipe, settings.recipe).build(host, model, settings)

    def titled(self, host: type[Host], settings: Any, record: dict[str, Any]) -> str:
        main = baselines.find(settings.recipe, settings.recipe).titled(host, settings, record)
        return self.title.format(main=main)


BASELINE = RandomHost()
