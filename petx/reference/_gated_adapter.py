"""Definition of `gated_adapter`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from petx.reference._activation import gelu
from petx.reference._dropout import dropout_mask

__all__ = ["block_diagonal_linear", "gated_adapter"]


def block_diagonal_linear(z: Tensor, weight: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    """``heads`` independent maps side by side: ``z [..., r]``, ``weight [d, r / heads]`` -> ``[..., d]``."""
    if heads == 1:
        return F.linear(z, weight, bias)
    rows, rank = weight.shape[0] // heads, weight.shape[1]
    blocks = torch.einsum("...hr,hdr->...hd", z.unflatten(-1, (heads, rank)), weight.reshape(heads, rows, rank))
    out = blocks.flatten(-2)
    return out if bias is None else out + bias


def gated_adapter(
    h: Tensor,  # [B, L, d] output of the frozen sub-layer
    x: Tensor | None,  # [B, L, d_x] input of the residual branch; None if nothing reads it
    down_weight: Tensor,  # [r, d] (sequential) or [r, d_x] (parallel)
    down_bias: Tensor | None,  # [r] or None
    up_weight: Tensor,  # [d, r / heads]
    up_bias: Tensor | None,  # [d] or None
    gate_down_weight: Tensor | None = None,  # [r_g, d]        large
    gate_down_bias: Tensor | None = None,  # [r_g]           large
    gate_weight: Tensor | None = None,  # [d, r_g] large, [1, d] middleX, [d] middleY, [1, 2 d] small
    gate_bias: Tensor | None = None,  # [d] large, [1] middleX and small
    norm_weight: Tensor | None = None,  # [d]
    norm_bias: Tensor | None = None,  # [d]
    skip: Tensor | None = None,  # [B, L, d] added in place of x, perhaps wider than h: the result is as wide
    padding_mask: Tensor | None = None,  # [B, L] bool, True if a token counts; small only
    seed: Tensor | None = None,  # int64, one element
    *,
    granularity: str = "none",
    heads: int = 1,
    activation: str = "gelu_tanh",
    gate_input: str = "modified",
    middle_y: str = "linear",
    placement: str = "sequential",
    scale: float = 1.0,
    dropout: float = 0.0,
    residual: bool = False,
    norm: str | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """VL-PET's granularity-controlled adapter site with the frozen layer's tail (arXiv 2308.09804, section 3).

    z   = down(h or x);  S = h + up(gelu(z));  Y = s * G * S
    out = norm(x + dropout(Y)),   each of dropout, x and norm optional; x may be given apart, as skip
    """
    read_down = h if placement == "sequential" else x
    assert read_down is not None
    z = F.linear(read_down, down_weight, down_bias)
    s = h + block_diagonal_linear(gelu(z, activation), up_weight, up_bias, heads)
    gate: Tensor | None
    read = s if gate_input == "modified" else h
    if granularity == "large":
        assert x is not None and gate_down_weight is not None and gate_weight is not None
        gate = torch.sigmoid(
            F.linear(gelu(F.linear(x, gate_down_weight, gate_down_bias), activation), gate_weight, gate_bias)
        )
    elif granularity == "middleX":
        assert x is not None and gate_weight is not None
        gate = torch.sigmoid(F.linear(x + read, gate_weight, gate_bias))
    elif granularity == "middleY":
        assert gate_weight is not None
        gate = 1 + (gate_weight if middle_y == "linear" else torch.sigmoid(gate_weight))
    elif granularity == "small":
        assert x is not None and gate_weight is not None
        logits = F.linear(torch.cat([x, read], dim=-1), gate_weight, gate_bias)  # [B, L, 1]
        if padding_mask is None:
            gate = torch.sigmoid(logits).mean(dim=1, keepdim=True)
        else:  # padding may be anything, NaN too: it is taken out before the activation, and after it
            padding = ~padding_mask.unsqueeze(-1)
            per_token = torch.sigmoid(logits.masked_fill(padding, 0)).masked_fill(padding, 0)
            gate = per_token.sum(1, keepdim=True) / (~padding).sum(1, keepdim=True).clamp(min=1)
    else:
        gate = None
    y = scale * (s if gate is None else gate * s)
    if dropout > 0:
        assert seed is not None
        y = y * dropout_mask(seed, tuple(y.shape), dropout, y.dtype, y.device)
    if residual:
        assert x is not None
        y = x + y
    if skip is not None:
        y = skip + y
    if norm == "layer":
        y = F.layer_norm(y, y.shape[-1:], norm_weight, norm_bias, eps)
    elif norm == "rms":
        y = F.rms_norm(y, y.shape[-1:], norm_weight, eps)
    return y
