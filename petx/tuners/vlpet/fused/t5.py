"""T5's two encoder sub-layers, which normalise what they read: sub-layer, dropout, residual connection."""

from typing import Any

import torch
from transformers.models.t5 import modeling_t5

from petx.tuners.vlpet.fused.layer import FusedLayer, end_of_sublayer

__all__ = ["T5LayerFF", "T5LayerSelfAttention"]


class T5LayerSelfAttention(FusedLayer, modeling_t5.T5LayerSelfAttention):
    host = modeling_t5.T5LayerSelfAttention
    sites = ("SelfAttention.o",)
    watched = ("SelfAttention",)
    arguments = ("self", "hidden_states", "attention_mask", "position_bias")
    reads = frozenset(("layer_norm", "SelfAttention", "dropout"))

    def fused_forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """``(hidden_states [B, L, d], position bias, attention weights)``; ``kwargs`` are the attention's."""
        h, *more = self.SelfAttention(
            self.layer_norm(hidden_states), mask=attention_mask, position_bias=position_bias, **kwargs
        )
        site = self.SelfAttention.o
        return end_of_sublayer(site, h, hidden_states, self.dropout, None, self.training), *more


class T5LayerFF(FusedLayer, modeling_t5.T5LayerFF):
    host = modeling_t5.T5LayerFF
    sites = ("DenseReluDense.wo",)
    watched = ("DenseReluDense",)
    arguments = ("self", "hidden_states")
    reads = frozenset(("layer_norm", "DenseReluDense", "dropout"))

    def fused_forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """``hidden_states [B, L, d]`` to the same."""
        h = self.DenseReluDense(self.layer_norm(hidden_states))
        return end_of_sublayer(self.DenseReluDense.wo, h, hidden_states, self.dropout, None, self.training)
