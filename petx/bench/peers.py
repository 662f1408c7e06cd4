"""The operations as a user writes them in eager torch: literally as released, and with care.

``t`` holds a case's tensors by name, further arguments are its options; all return a tuple.
"""

import math

import torch
import torch.nn.functional as F

from petx import functional

LITERAL, BEST, COMPILED, GRAPHS, LORA, LYCORIS = NAMES = (
    "literal eager",
    "best eager",
    "torch.compile",
    "torch.compile, CUDA graphs",
    "PEFT LoRA",
    "LyCORIS LoRA",
)


def gelu_new(z):
    """The tanh GELU as the released VL-PET stack computes it: one element-wise operation after another."""
    return 0.5 * z * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * torch.pow(z, 3.0))))


def site_literal(t, *, heads, dropout, tail):
    """VL-PET's large site operation by operation as released: a linear a head, concatenation, gelu_new."""
    parts = zip(t["down_weight"].chunk(heads), t["down_bias"].chunk(heads), strict=True)
    z = torch.cat([F.linear(t["h"], weight, bias) for weight, bias in parts], dim=-1)
    s = t["h"] + F.linear(gelu_new(z), t["up_weight"], t["up_bias"])
    hidden = gelu_new(F.linear(t["x"], t["gate_down_weight"], t["gate_down_bias"]))
    return host_tail(s * torch.sigmoid(F.linear(hidden, t["gate_weight"], t["gate_bias"])), t, dropout, tail)


def site_eager(t, *, heads, dropout, tail):
    """The same function as a careful user writes it: heads stacked into one product, torch's own GELU."""
    z = F.gelu(F.linear(t["h"], t["down_weight"], t["down_bias"]), approximate="tanh")
    s = t["h"] + F.linear(z, t["up_weight"], t["up_bias"])
    hidden = F.gelu(F.linear(t["x"], t["gate_down_weight"], t["gate_down_bias"]), approximate="tanh")
    return host_tail(s * torch.sigmoid(F.linear(hidden, t["gate_weight"], t["gate_bias"])), t, dropout, tail)


def host_tail(y, t, dropout, tail):
    """What the host layer does with the site's output: BART's dropout, residual and norm, T5's without the norm."""
    if tail == "none":
        return (y,)
    y = t["x"] + F.dropout(y, dropout, training=True)
    return (F.layer_norm(y, y.shape[-1:], t["norm_weight"], t["norm_bias"]),) if tail == "bart" else (y,)


def site_petx(t, *, heads, dropout, tail):
    options = {} if tail == "none" else dict(dropout=dropout, residual=True)
    options |= dict(norm="layer") if tail == "bart" else {}
    return (functional.gated_adapter(**t, granularity="large", **options),)


def cores_literal(t):
    """One contraction a mode vector, as the released code makes them anew for every projection."""
    return (torch.stack([t["core"] @ mode for mode in t["modes"]]),)


def cores_eager(t):
    """All mode vectors in one product with the core as a matrix, so that every result lies together."""
    rank = t["core"].shape[0]
    return (F.linear(t["modes"], t["core"].view(rank * rank, rank)).view(-1, rank, rank),)


def cores_petx(t):
    return (functional.mode_cores(t["core"], t["modes"]),)


def update_literal(t, *, dropout, projections):
    """As released: x Uᵀ, dropout, the core's contraction, and the way out, anew for every projection."""
    outputs = []
    for base, mode in zip(_bases(t, projections), t["modes"], strict=True):
        hidden = F.dropout(F.linear(t["x"], t["u"]), dropout, training=True)
        outputs.append(base + F.linear(hidden @ (t["core"] @ mode), t["v"]))
    return tuple(outputs)


def update_eager(t, *, dropout, projections):
    """With care: x Uᵀ once, all cores in one product, and the last product added to the base in the same call."""
    hidden = F.linear(t["x"], t["u"]).flatten(0, -2)
    (cores,) = cores_eager(t)
    outputs = []
    for base, core in zip(_bases(t, projections), cores, strict=True):
        narrow = F.dropout(hidden, dropout, training=True) @ core
        outputs.append(torch.addmm(base.flatten(0, -2), narrow, t["v"].T).view_as(base))
    return tuple(outputs)


def update_petx(t, *, dropout, projections):
    cores = functional.mode_cores(t["core"], t["modes"])
    return functional.mode_update(t["x"], t["u"], t["v"], cores, _bases(t, projections), dropout=dropout)


def _bases(t, projections):
    """The frozen projections' outputs: given, or computed here with their weights."""
    count = len(t["modes"])
    if projections:
        return [F.linear(t["x"], t[f"weight_{k}"], t[f"bias_{k}"]) for k in range(count)]
    return [t[f"base_{k}"] for k in range(count)]


def reconstruct_literal(t, *, gate):
    """Module by module, element-wise operations one after another."""
    outputs = []
    for k, weight in enumerate(t["weights"].unbind()):
        core = t["cores"][k]
        delta = (t["v"] * core if core.dim() == 1 else t["v"] @ core.T) @ t["u"]
        if gate == "soft":
            delta = torch.sign(delta) * F.relu(delta.abs() - t["threshold"])
        outputs.append(weight + delta)
    return tuple(outputs)


def reconstruct_eager(t, *, gate):
    """With care: the narrow products of all modules in one call, addmm where there is no gate."""
    cores = t["cores"]
    narrow = t["v"] * cores[:, None] if cores.dim() == 2 else t["v"] @ cores.mT
    outputs = []
    for weight, left in zip(t["weights"].unbind(), narrow.unbind(), strict=True):
        if gate == "none":
            outputs.append(torch.addmm(weight, left, t["u"]))
        else:
            delta = left @ t["u"]
            outputs.append(weight + (delta - torch.clamp(delta, -t["threshold"], t["threshold"])))
    return tuple(outputs)


def reconstruct_stacked(t, *, gate):
    """All modules as one tensor: what a compiler can make one kernel of."""
    cores = t["cores"]
    delta = (t["v"] * cores[:, None] if cores.dim() == 2 else t["v"] @ cores.mT) @ t["u"]
    if gate == "soft":
        delta = torch.sign(delta) * F.relu(delta.abs() - t["threshold"])
    return (t["weights"] + delta).unbind()


def reconstruct_petx(t, *, gate):
    threshold = t["threshold"] if gate == "soft" else None
    return functional.cp_reconstruct(t["weights"].unbind(), t["u"], t["v"], t["cores"], threshold, gate=gate)


def mixture_literal(t, *, experts, gate, alpha, beta):
    """An expert at a time, as released."""
    weights = _gate(t, gate)
    downs, ups = t["down_weight"].chunk(experts), t["up_weight"].chunk(experts, dim=1)
    mixed = 0
    for k, (down, bias, up) in enumerate(zip(downs, t["down_bias"].chunk(experts), ups, strict=True)):
        out = F.linear(F.linear(t["x"], down, bias), up, t["up_bias"][k])
        mixed = mixed + (out if weights is None else weights[..., k : k + 1] * out)
    return (alpha * t["x"] + beta * (mixed / experts if weights is None else mixed),)


def mixture_eager(t, *, experts, gate, alpha, beta):
    """The experts stacked into two products; a uniform gate is a factor of the last."""
    x, weights = t["x"], _gate(t, gate)
    hidden = F.linear(x, t["down_weight"], t["down_bias"])
    if weights is None:
        return (alpha * x + (beta / experts) * F.linear(hidden, t["up_weight"], t["up_bias"].sum(0)),)
    scaled = (hidden.unflatten(-1, (experts, -1)) * weights.unsqueeze(-1)).flatten(-2)
    return (alpha * x + beta * (F.linear(scaled, t["up_weight"]) + weights @ t["up_bias"]),)


def mixture_petx(t, *, experts, gate, alpha, beta):
    return (functional.expert_mixture(**t, experts=experts, gate=gate, alpha=alpha, beta=beta),)


def _gate(t, gate):
    return None if gate == "uniform" else torch.softmax(F.linear(t["x"], t["gate_weight"], t["gate_bias"]), -1)
