"""What petx is measured against, as a user would write it in eager torch."""

import math

import torch
import torch.nn.functional as F


def gelu_new(z):
    """The tanh GELU as the released VL-PET stack computes it: one element-wise operation after another."""
    return 0.5 * z * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * torch.pow(z, 3.0))))


def site_literal(t, *, heads, scale, dropout, tail):
    """The large site operation by operation as the released code runs it: a linear a head, concatenation, gelu_new."""
    parts = zip(t["down_weight"].chunk(heads), t["down_bias"].chunk(heads), strict=True)
    z = torch.cat([F.linear(t["h"], weight, bias) for weight, bias in parts], dim=-1)
    s = t["h"] + F.linear(gelu_new(z), t["up_weight"], t["up_bias"])
    gate = F.linear(
        gelu_new(F.linear(t["x"], t["gate_down_weight"], t["gate_down_bias"])), t["gate_weight"], t["gate_bias"]
    )
    y = s * torch.sigmoid(gate)
    return host_tail(y * scale if scale != 1.0 else y, t, dropout, tail)


def site_eager(t, *, heads, scale, dropout, tail):
    """The same function as a careful user writes it: heads stacked into one product, torch's own GELU."""
    z = F.gelu(F.linear(t["h"], t["down_weight"], t["down_bias"]), approximate="tanh")
    s = t["h"] + F.linear(z, t["up_weight"], t["up_bias"])
    hidden = F.gelu(F.linear(t["x"], t["gate_down_weight"], t["gate_down_bias"]), approximate="tanh")
    y = s * torch.sigmoid(F.linear(hidden, t["gate_weight"], t["gate_bias"]))
    return host_tail(y * scale if scale != 1.0 else y, t, dropout, tail)


def host_tail(y, t, dropout, tail):
    """What the host layer does with the site's output: BART's dropout, residual and norm, or nothing."""
    if tail == "none":
        return y
    y = t["x"] + F.dropout(y, dropout, training=True)
    return F.layer_norm(y, y.shape[-1:], t["norm_weight"], t["norm_bias"])
