"""Every operation of petx in a few lines of torch: the specification the kernels are held to.

A function here takes the tensors of one call, already cast to one dtype, and returns what the kernel returns.
It is differentiable by autograd, runs on any device, and is what :mod:`petx.functional` falls back to where no
kernel was built. Nothing here is fast.
"""

import math

import torch
import torch.nn.functional as F

PHILOX_ROUNDS = 7
_PHILOX_M0, _PHILOX_M1 = 0xD2511F53, 0xCD9E8D57
_PHILOX_W0, _PHILOX_W1 = 0x9E3779B9, 0xBB67AE85


def philox_uniform(seed, count, device=None):
    """24-bit integers from Philox4x32 with 7 rounds (Salmon et al., SC'11), element i from counter i // 4, word i % 4.

    ``seed`` is an int64 tensor of one element (the 64-bit key) or an int; returns int64 ``[count]`` in [0, 2**24).
    """
    seed = torch.as_tensor(seed, dtype=torch.int64, device=device).reshape(())
    counter = torch.arange((count + 3) // 4, dtype=torch.int64, device=seed.device)
    mask = 0xFFFFFFFF
    c0, c1 = counter & mask, counter >> 32
    c2 = c3 = torch.zeros_like(counter)
    k0, k1 = seed & mask, (seed >> 32) & mask
    for _ in range(PHILOX_ROUNDS):
        hi0, lo0 = _mul_hi_lo(c0, _PHILOX_M0)
        hi1, lo1 = _mul_hi_lo(c2, _PHILOX_M1)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _PHILOX_W0) & mask, (k1 + _PHILOX_W1) & mask
    return torch.stack([c0, c1, c2, c3], dim=1).reshape(-1)[:count] >> 8


def _mul_hi_lo(a, b):
    """High and low 32 bits of a 32 x 32-bit product, in int64 without overflow."""
    b_hi, b_lo = b >> 16, b & 0xFFFF
    high, low = a * b_hi, a * b_lo  # each below 2**48
    total = low + ((high & 0xFFFF) << 16)
    return (high >> 16) + (total >> 32), total & 0xFFFFFFFF


def dropout_mask(seed, shape, p, dtype, device=None):
    """The kernels' dropout mask: 1 / (1 - p) where an element is kept, 0 where it is dropped.

    Element i (row-major) is dropped where its 24-bit Philox integer is below floor(p * 2**24).
    """
    kept = philox_uniform(seed, math.prod(shape), device) >= int(p * 2**24)
    return (kept.to(torch.float64) * (1.0 / (1.0 - p) if p < 1 else 0.0)).to(dtype).reshape(shape)


def gelu(z, activation):
    """GELU, exact (``"gelu"``) or by the tanh approximation (``"gelu_tanh"``, the released code's ``gelu_new``)."""
    return F.gelu(z, approximate="tanh" if activation == "gelu_tanh" else "none")


def block_diagonal_linear(z, weight, bias, heads):
    """``heads`` independent maps side by side: ``z [..., r]``, ``weight [d, r / heads]`` -> ``[..., d]``."""
    if heads == 1:
        return F.linear(z, weight, bias)
    rows, rank = weight.shape[0] // heads, weight.shape[1]
    blocks = torch.einsum("...hr,hdr->...hd", z.unflatten(-1, (heads, rank)), weight.reshape(heads, rows, rank))
    out = blocks.flatten(-2)
    return out if bias is None else out + bias


def gated_adapter(
    h,  # [B, L, d] output of the frozen sub-layer
    x,  # [B, L, d_x] input of the residual branch; None where nothing reads it
    down_weight,  # [r, d] (sequential) or [r, d_x] (parallel)
    down_bias,  # [r] or None
    up_weight,  # [d, r / heads]
    up_bias,  # [d] or None
    gate_down_weight=None,  # [r_g, d]        large
    gate_down_bias=None,  # [r_g]           large
    gate_weight=None,  # [d, r_g] large, [1, d] middleX, [d] middleY, [1, 2 d] small
    gate_bias=None,  # [d] large, [1] middleX and small
    norm_weight=None,  # [d]
    norm_bias=None,  # [d]
    padding_mask=None,  # [B, L] bool, True where a token counts; small only
    seed=None,  # int64, one element
    *,
    granularity="none",
    heads=1,
    activation="gelu_tanh",
    gate_input="modified",
    middle_y="linear",
    placement="sequential",
    scale=1.0,
    dropout=0.0,
    residual=False,
    norm=None,
    eps=1e-5,
):
    """VL-PET's granularity-controlled adapter site with the host layer's tail (arXiv 2308.09804, section 3).

    z   = down(h or x);  S = h + up(gelu(z));  Y = s * G * S
    out = norm(x + dropout(Y)),   each of dropout, x and norm optional
    """
    z = F.linear(h if placement == "sequential" else x, down_weight, down_bias)
    s = h + block_diagonal_linear(gelu(z, activation), up_weight, up_bias, heads)
    read = s if gate_input == "modified" else h
    if granularity == "large":
        gate = torch.sigmoid(
            F.linear(gelu(F.linear(x, gate_down_weight, gate_down_bias), activation), gate_weight, gate_bias)
        )
    elif granularity == "middleX":
        gate = torch.sigmoid(F.linear(x + read, gate_weight, gate_bias))
    elif granularity == "middleY":
        gate = 1 + (gate_weight if middle_y == "linear" else torch.sigmoid(gate_weight))
    elif granularity == "small":
        per_token = torch.sigmoid(F.linear(torch.cat([x, read], dim=-1), gate_weight, gate_bias))  # [B, L, 1]
        if padding_mask is None:
            gate = per_token.mean(dim=1, keepdim=True)
        else:
            weight = padding_mask.to(per_token.dtype).unsqueeze(-1)
            gate = (per_token * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
    else:
        gate = 1.0
    y = scale * (gate * s)
    if dropout > 0:
        y = y * dropout_mask(seed, tuple(y.shape), dropout, y.dtype, y.device)
    if residual:
        y = x + y
    if norm == "layer":
        y = F.layer_norm(y, y.shape[-1:], norm_weight, norm_bias, eps)
    elif norm == "rms":
        y = F.rms_norm(y, y.shape[-1:], norm_weight, eps)
    return y
