"""LoRA as in PETAL's table, which is not PEFT's: biases in both projections, and a learnt scale."""

import math
from typing import Any

import torch
from torch import nn

from petx.baselines._sizes import LORA_LR, LORA_RANK, rank_as_large_as_the_method, read_for_size
from petx.baselines.base import Baseline
from petx.hosts import Host

PROJECTIONS = ("query", "key", "value")


class ScaledLora(Baseline):
    """LoRA as PETAL's code has it: biases in both projections and a learnt scale, on every attention of a Q-Former."""

    name, title, colour, order, lr = "scaled-lora", "LoRA, learnt scale (rank {rank_used})", "#56B4E9", 31, "lr_lora"
    methods, needs_qformer = ("petal",), True
    options = {"lr_lora": LORA_LR, "lora_rank": LORA_RANK}

    def reads(self, settings: Any) -> set[str]:
        return super().reads(settings) | (set() if settings.lora_rank else read_for_size(settings))

    def build(self, host: type[Host], model: Any, settings: Any) -> nn.Module:
        model.requires_grad_(False)
        linears = [getattr(attention, name) for attention in _attentions(model) for name in PROJECTIONS]

        def size(rank: int) -> int:
            return sum(rank * (one.in_features + one.out_features + 1) + one.out_features + 1 for one in linears)

        rank = settings.lora_rank or rank_as_large_as_the_method(host, model, settings, size)
        for attention in _attentions(model):
            for name in PROJECTIONS:
                setattr(attention, name, ScaledLinear(getattr(attention, name), rank))
        return model

    def counts(self, model: Any) -> dict[str, int]:
        return {"rank_used": next(m for m in model.modules() if isinstance(m, ScaledLinear)).down.out_features}


class ScaledLinear(nn.Module):
    """``x Wᵀ + b + s ((x Dᵀ + d) Uᵀ + u)`` around a frozen linear; s starts at 1, U and both biases at zero."""

    def __init__(self, frozen: nn.Linear, rank: int) -> None:
        super().__init__()
        place: dict[str, Any] = dict(device=frozen.weight.device, dtype=torch.float32)
        self.frozen = frozen
        self.down = nn.Linear(frozen.in_features, rank, **place)
        self.up = nn.Linear(rank, frozen.out_features, **place)
        self.scale = nn.Parameter(torch.ones(1, **place))
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(x) + self.scale * self.up(self.down(x))


def _attentions(model: Any) -> list[Any]:
    """The self-attentions and cross-attentions of the Q-Former, which hold its three projections."""
    layers = model.qformer.encoder.layer
    blocks = [block for layer in layers for block in (layer.attention, getattr(layer, "crossattention", None))]
    return [block.attention for block in blocks if block is not None]


BASELINE = ScaledLora()
