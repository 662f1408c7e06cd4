"""UniAdapter's bottleneck in a Q-Former, as published (128) or of the method's size."""

from typing import Any

import torch
from torch import nn

from petx.baselines._sizes import ADAPTER_RANK, rank_as_large_as_the_method, read_for_size
from petx.baselines.base import Baseline
from petx.hosts import Host
from petx.options import option


class AdapterBaseline(Baseline):
    """A bottleneck after self-attention and before cross-attention (as UniAdapter's); by default of PETAL's size."""

    name, title, colour, order, lr = "adapter", "adapter (bottleneck {rank_used})", "#56B4E9", 40, "lr_adapter"
    methods, needs_qformer = ("petal",), True
    options = {
        "lr_adapter": (float, option(3e-3, "peak learning rate of the adapter", above=0)),
        "adapter_rank": ADAPTER_RANK,
    }

    def reads(self, settings: Any) -> set[str]:
        return super().reads(settings) | (set() if settings.adapter_rank else read_for_size(settings))

    def build(self, host: type[Host], model: Any, settings: Any) -> nn.Module:
        model.requires_grad_(False)
        width, layers = model.config.qformer_config.hidden_size, len(model.qformer.encoder.layer)
        size = lambda rank: layers * (2 * rank * width + rank + 3 * width)  # noqa: E731
        add_adapters(model, settings.adapter_rank or rank_as_large_as_the_method(host, model, settings, size))
        return model

    def counts(self, model: Any) -> dict[str, int]:
        return {"rank_used": next(m for m in model.modules() if isinstance(m, Adapter)).down.out_features}


class Adapter(nn.Module):
    """``x + 0.1 relu(norm(x) Dᵀ + d) Uᵀ + u``, the bottleneck of UniAdapter; U and u start at zero."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.norm, self.down, self.up = nn.LayerNorm(width), nn.Linear(width, rank), nn.Linear(rank, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> Any:
        return x + 0.1 * self.up(torch.relu(self.down(self.norm(x))))


class AfterSelfAttention(nn.Module):
    """A self-attention block whose output, of all tokens, goes through ``adapter``."""

    def __init__(self, block: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.block, self.adapter = block, adapter

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.adapter(self.block(*args, **kwargs))


class BeforeCrossAttention(nn.Module):
    """A cross-attention block whose input, the query tokens, goes through the layer's adapter once more."""

    adapter: nn.Module

    def __init__(self, block: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.__dict__["adapter"] = adapter  # registered at the self-attention, which shares it

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        return self.block(self.adapter(hidden_states), **kwargs)


def add_adapters(model: Any, rank: int) -> None:
    """The paper's adapter baseline: one bottleneck per layer, after self-attention and again before cross-attention."""
    for layer in model.qformer.encoder.layer:
        weight = layer.attention.output.dense.weight
        adapter = Adapter(weight.shape[0], rank).to(weight.device, torch.float32)
        layer.attention = AfterSelfAttention(layer.attention, adapter)
        if layer.has_cross_attention:
            layer.crossattention = BeforeCrossAttention(layer.crossattention, adapter)


BASELINE = AdapterBaseline()
