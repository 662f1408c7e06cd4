"""LoRA of the method's size."""

from collections.abc import Callable
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn

from petx import baselines
from petx.baselines._sizes import counts, rank_of_size
from petx.baselines.base import Baseline
from petx.hosts import Host
from petx.options import option


class Lora(Baseline):
    """LoRA as the paper places it on this host, at the rank that trains as much as the method; its scale is 1."""

    name, title, colour, order, lr = "lora", "LoRA (rank {rank_used})", "#0072B2", 30, "lr_lora"
    options = {"lr_lora": (float, option(3e-3, "peak learning rate of LoRA", above=0))}

    def build(self, host: type[Host], model: Any, settings: Any) -> nn.Module:
        rank = rank_as_large_as_the_method(host, model, settings, host.lora_sizes(model, settings))
        return get_peft_model(model.requires_grad_(False), LoraConfig(**host.lora(rank, settings)))

    def counts(self, model: Any) -> dict[str, int]:
        return {"rank_used": model.peft_config["default"].r}

    def titled(self, host: type[Host], settings: Any, record: dict[str, Any]) -> str:
        return super().titled(host, settings, {"rank_used": record.get("lora_rank")} | record)  # as once recorded


def rank_as_large_as_the_method(host: type[Host], model: nn.Module, settings: Any, size: Callable[[int], int]) -> int:
    """The rank at which ``size(rank)`` comes nearest to what the recipe's method trains of ``model``."""
    method = baselines.find(settings.recipe, settings.recipe)
    wanted = counts(host, method.sized(host, host.skeleton(model), settings))["trainable"]
    return rank_of_size(wanted, size)


BASELINE = Lora()
