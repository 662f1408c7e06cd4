"""BART's encoder layer: sub-layer, dropout, residual connection, norm, twice."""

from typing import Any

import torch
import torch.nn.functional as F
from transformers.models.bart import modeling_bart

from petx.tuners.vlpet.fused.layer import FusedLayer, end_of_sublayer

__all__ = ["BartEncoderLayer"]


class BartEncoderLayer(FusedLayer, modeling_bart.BartEncoderLayer):  # the host's name: wrapping policies look for it
    host = modeling_bart.BartEncoderLayer
    sites = ("self_attn.out_proj", "fc2")
    watched = ("self_attn",)
    arguments = ("self", "hidden_states", "attention_mask")
    reads = frozenset(
        "self_attn dropout training self_attn_layer_norm activation_fn fc1 activation_dropout fc2 "
        "final_layer_norm".split()
    )

    def fused_forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs: Any
    ) -> torch.Tensor:
        """``hidden_states [B, L, d]`` to the same; ``attention_mask`` and the rest are the attention's."""
        dropout: Any = self.dropout  # a number, which transformers types as optional
        inner_dropout: Any = self.activation_dropout
        h, _ = self.self_attn(hidden_states, attention_mask=attention_mask, **kwargs)
        x = end_of_sublayer(
            self.self_attn.out_proj, h, hidden_states, dropout, self.self_attn_layer_norm, self.training
        )
        inner = F.dropout(self.activation_fn(self.fc1(x)), inner_dropout, self.training)
        out = end_of_sublayer(self.fc2, self.fc2(inner), x, dropout, self.final_layer_norm, self.training)
        if out.dtype == torch.float16 and not torch.isfinite(out).all():  # as the host does
            largest = torch.finfo(out.dtype).max - 1000
            out = out.clamp(-largest, largest)
        return out
