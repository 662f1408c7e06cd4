"""Definition of `expert_mixture`."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from petx.reference._activation import gelu

__all__ = ["expert_mixture"]


def expert_mixture(
    x: Tensor,  # [B, L, d]
    down_weight: Tensor,  # [K r, d]
    down_bias: Tensor | None,  # [K r] or None
    up_weight: Tensor,  # [d, K r]
    up_bias: Tensor | None,  # [K, d] or None
    gate_weight: Tensor | None = None,  # [K, d]   token, sample
    gate_bias: Tensor | None = None,  # [K] or None
    scope_mask: Tensor | None = None,  # [B, L] bool: tokens that are mixed
    pool_mask: Tensor | None = None,  # [B, L] bool: tokens in a sample gate's mean
    *,
    experts: int,
    gate: str = "uniform",
    top_k: int | None = None,
    activation: str | None = None,
    alpha: float = 0.6,
    beta: float = 0.4,
) -> Tensor:
    """PETAL's instruction experts: ``y = α x + β Σ_k g_k (B_k act(A_k x + a_k) + b_k)`` (arXiv 2312.12458).

    x [B, L, d], down_weight [K r, d], down_bias [K r], up_weight [d, K r], up_bias [K, d], gate_weight [K, d],
    gate_bias [K], masks [B, L] -> [B, L, d].
    """
    hidden = F.linear(x, down_weight, down_bias)
    if activation == "relu":
        hidden = F.relu(hidden)
    elif activation is not None:
        hidden = gelu(hidden, activation)
    if gate == "uniform":
        weights = x.new_full((*x.shape[:-1], experts), 1 / experts)
    else:
        assert gate_weight is not None
        logits = F.linear(x, gate_weight)
        if gate == "sample":  # the mean of its tokens' logits; what does not count may be anything, NaN too
            counts = torch.ones_like(x[..., :1], dtype=torch.bool) if pool_mask is None else pool_mask.unsqueeze(-1)
            total = logits.masked_fill(~counts, 0).sum(1, keepdim=True)
            logits = total / counts.sum(1, keepdim=True).clamp(min=1)
        if gate_bias is not None:
            logits = logits + gate_bias
        if top_k is not None:
            logits = logits.masked_fill(~_among_largest(logits, top_k), -math.inf)
        weights = torch.softmax(logits, dim=-1).expand(*x.shape[:-1], experts)
    scaled = (hidden.unflatten(-1, (experts, -1)) * weights.unsqueeze(-1)).flatten(-2)
    mixed = F.linear(scaled, up_weight)
    if up_bias is not None:
        mixed = mixed + weights @ up_bias
    y = alpha * x + beta * mixed
    return y if scope_mask is None else torch.where(scope_mask.unsqueeze(-1), y, x)


def _among_largest(logits: Tensor, count: int) -> Tensor:
    """Whether a value is among the ``count`` largest of the last dimension; of equal ones the first is the larger."""
    order = torch.sort(logits, dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order[..., :count], True)
