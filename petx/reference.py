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


def threshold_gate(values, threshold, gate, temperature=1.0):
    """PETAL's learnable threshold Γ on the entries of ``values``, to which ``threshold`` broadcasts.

    ``soft`` is sign(c) max(|c| - t, 0), ``sigmoid`` c σ((|c| - t) / temperature), ``hard`` c where |c| > t, whose
    gradient is passed straight through to c and is the soft gate's to t.
    """
    if gate == "none":
        return values
    if gate == "sigmoid":
        return values * torch.sigmoid((values.abs() - threshold) / temperature)
    soft = torch.sign(values) * F.relu(values.abs() - threshold)
    if gate == "soft":
        return soft
    kept = (values.abs() > threshold).to(values.dtype)
    through = values - torch.sign(values) * kept * threshold  # its gradients are the ones wanted
    return through + (values * kept - through).detach()


def mode_cores(core, modes, threshold=None, *, gate="none", temperature=1.0):
    """The cores of all modes, ``M_n = gate(C) ×₃ p_n`` (PETAL, arXiv 2312.12458, dynamic mode approximation).

    core [R, R, R], modes [n, R] -> [n, R, R]; or the CP weights core [R] -> [n, R], the diagonals. ``threshold`` [1],
    or [R] for the last index.
    """
    core = threshold_gate(core, threshold, gate, temperature)
    if core.dim() == 1:
        return core * modes
    return torch.einsum("ijk,nk->nij", core, modes)


def mode_update(
    x,  # [T, d_in], or [T, R] where u is None
    u,  # [R, d_in] or None
    v,  # [d_out, R]
    cores,  # [K, R, R] or [K, R]
    bases=None,  # K tensors [T, d_out]
    seed=None,  # int64, one element
    *,
    dropout=0.0,
    shared_mask=False,
):
    """PETAL's update beside K frozen projections of one input: ``y_k = base_k + drop_k(x Uᵀ) M_k Vᵀ``, K tensors."""
    hidden = x if u is None else F.linear(x, u)
    count, shape = cores.shape[0], hidden.shape
    masks = [None] * count
    if dropout > 0 and shared_mask:
        masks = [dropout_mask(seed, tuple(shape), dropout, x.dtype, x.device)] * count
    elif dropout > 0:
        masks = dropout_mask(seed, (count, *shape), dropout, x.dtype, x.device).unbind()
    outputs = []
    for k, mask in enumerate(masks):
        kept = hidden if mask is None else hidden * mask
        mixed = kept * cores[k] if cores.dim() == 2 else kept @ cores[k]
        update = F.linear(mixed, v)
        outputs.append(update if bases is None else bases[k] + update)
    return tuple(outputs)


def cp_reconstruct(weights, u, v, cores, threshold=None, *, gate="none", temperature=1.0, scale=1.0):
    """PETAL's weights written out: ``W'_k = W_k + gate(scale V M_kᵀ U)``, K matrices [d_out, d_in].

    u [R, d_in], v [d_out, R], cores [K, R, R] or their diagonals [K, R]; threshold [1] or [K]. Made in float32 (float64
    for float64) and rounded once.
    """
    dtype = weights[0].dtype
    wide = torch.promote_types(dtype, torch.float32)
    u, v, cores = u.to(wide), v.to(wide), cores.to(wide)
    results = []
    for k, weight in enumerate(weights):
        mixed = v * cores[k] if cores.dim() == 2 else v @ cores[k].T
        limit = None if threshold is None else threshold[k if threshold.numel() > 1 else 0].to(wide)
        update = threshold_gate(scale * (mixed @ u), limit, gate, temperature)
        results.append((weight.to(wide) + update).to(dtype))
    return tuple(results)


def expert_mixture(
    x,  # [B, L, d]
    down_weight,  # [K r, d]
    down_bias,  # [K r] or None
    up_weight,  # [d, K r]
    up_bias,  # [K, d] or None
    gate_weight=None,  # [K, d]   token, sample
    gate_bias=None,  # [K] or None
    scope_mask=None,  # [B, L] bool: tokens that are mixed
    pool_mask=None,  # [B, L] bool: tokens in a sample gate's mean
    *,
    experts,
    gate="uniform",
    top_k=None,
    activation=None,
    alpha=0.6,
    beta=0.4,
):
    """PETAL's instruction experts: ``y = α x + β Σ_k g_k (B_k act(A_k x + a_k) + b_k)``."""
    hidden = F.linear(x, down_weight, down_bias)
    if activation == "relu":
        hidden = F.relu(hidden)
    elif activation is not None:
        hidden = gelu(hidden, activation)
    if gate == "uniform":
        weights = x.new_full((*x.shape[:-1], experts), 1 / experts)
    else:
        read = x
        if gate == "sample" and pool_mask is None:
            read = x.mean(dim=1, keepdim=True)
        elif gate == "sample":
            counts = pool_mask.to(x.dtype).unsqueeze(-1)
            read = (x * counts).sum(1, keepdim=True) / counts.sum(1, keepdim=True).clamp(min=1)
        logits = F.linear(read, gate_weight, gate_bias)
        if top_k is not None:
            logits = logits.masked_fill(~_among_largest(logits, top_k), -math.inf)
        weights = torch.softmax(logits, dim=-1).expand(*x.shape[:-1], experts)
    scaled = (hidden.unflatten(-1, (experts, -1)) * weights.unsqueeze(-1)).flatten(-2)
    mixed = F.linear(scaled, up_weight)
    if up_bias is not None:
        mixed = mixed + weights @ up_bias
    y = alpha * x + beta * mixed
    return y if scope_mask is None else torch.where(scope_mask.unsqueeze(-1), y, x)


def _among_largest(logits, count):
    """Where a value is among the ``count`` largest of the last dimension; of equal ones the first counts as larger."""
    order = torch.sort(logits, dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order[..., :count], True)
