"""PETAL's mixture of instruction experts: one differentiable function."""

import math

import torch
from torch.autograd.function import once_differentiable

from petx import ops, reference
from petx.functional._arguments import (
    autocast_dtype,
    cast,
    checked_choice,
    checked_finite,
    checked_mask,
    checked_shape,
    operands,
)
from petx.functional._autograd import MISFITS, Differentiable, guarded, operator_checks, straight

__all__ = ["expert_mixture"]

# In the order of the enums in csrc/kernels/expert_mixture.h.
GATES = ("uniform", "token", "sample")
ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh")

# Position of each differentiable argument; bit i of `needs` asks the backward for argument i's gradient.
ARGUMENTS = "x down_weight down_bias up_weight up_bias gate_weight gate_bias".split()


def expert_mixture(
    x,
    down_weight,
    down_bias,
    up_weight,
    up_bias,
    *,
    experts,
    gate="uniform",
    gate_weight=None,
    gate_bias=None,
    top_k=None,
    activation=None,
    alpha=0.6,
    beta=0.4,
    scope_mask=None,
    pool_mask=None,
):
    """``y = α x + β Σ_k g_k E_k(x)``, ``E_k(x) = B_k act(A_k x + a_k) + b_k`` (PETAL, arXiv 2312.12458, the adaptive
    instruction mixture of experts).

    Args:
        x: ``[..., L, d]``. Floating; its dtype is the compute and output dtype (under autocast, the autocast dtype).
        down_weight, down_bias: ``[K r, d]`` and ``[K r]`` or None, the experts' A one below the other.
        up_weight, up_bias: ``[d, K r]`` and ``[K, d]`` or None, the experts' B side by side.
        experts: K. activation: None, ``"relu"``, ``"gelu"`` or ``"gelu_tanh"``.
        gate: ``"uniform"``, 1 / K (the released code); ``"token"``, the softmax of ``gate_weight x + gate_bias``; or
            ``"sample"``, the same of the mean of a sample's tokens.
        gate_weight, gate_bias: ``[K, d]`` and ``[K]`` or None; not used by ``"uniform"``.
        top_k: keep the largest logits (of equal ones the first) and take the softmax over these; None for all.
        alpha, beta: weights of x and of the experts.
        scope_mask: ``[..., L]``, non-zero where a token is mixed; the others pass unchanged. Default: all are.
        pool_mask: ``[..., L]``, non-zero where a token counts in the mean of ``"sample"``. Default: all do.

    Returns ``[..., L, d]``. Parameters may be of another floating dtype; their gradients come back in it. Not twice
    differentiable. Where no kernel exists for ``x``'s device the readable reference runs (``petx info`` says which).

    Raises ValueError naming the argument, what came and what was wanted.
    """
    parameters = (down_weight, down_bias, up_weight, up_bias, gate_weight, gate_bias)
    return mixture(x, parameters, (scope_mask, pool_mask), experts, gate, top_k, activation, alpha, beta)


def mixture(x, parameters, masks, experts, gate, top_k, activation, alpha, beta):
    """:func:`expert_mixture` of what a layer has: ``parameters`` in the order of :data:`ARGUMENTS`, both masks."""
    known = gate in GATES and activation in ACTIVATIONS and abs(alpha) < math.inf and abs(beta) < math.inf
    unmasked = masks[0] is None and masks[1] is None
    if known and unmasked and straight("expert_mixture", x):
        try:
            if x.dtype is parameters[0].dtype and x.is_contiguous() and (top_k is None or gate != "uniform"):
                numbers = (x.shape[-2], experts, GATES.index(gate), experts if top_k is None else top_k)
                numbers += (ACTIVATIONS.index(activation), alpha, beta)
                return torch.ops.petx.expert_mixture_fwd(x, *parameters, None, None, *numbers)[0]
        except MISFITS:
            pass
    arguments = (x, parameters, masks, experts, gate, top_k, activation, alpha, beta)
    if not operator_checks("expert_mixture", x):
        check(*arguments)
        return _run(*arguments)
    if not (known and unmasked) or x.dim() < 2 or (top_k is not None and gate == "uniform"):
        check(*arguments)
    return guarded(_run, check, arguments)


def _run(x, parameters, masks, experts, gate, top_k, activation, alpha, beta):
    dtype, shape = autocast_dtype(x), x.shape
    masks = [None if m is None else m.ne(0) for m in masks]
    if not ops.takes("expert_mixture", cast(x, dtype)):
        samples = math.prod(shape[:-2])
        y = reference.expert_mixture(
            cast(x, dtype).reshape(samples, *shape[-2:]),
            *(cast(p, dtype) for p in parameters),
            *(None if m is None else m.reshape(samples, shape[-2]) for m in masks),
            experts=experts,
            gate=gate,
            top_k=top_k,
            activation=activation,
            alpha=float(alpha),
            beta=float(beta),
        )
        return y.reshape(shape)
    return _ExpertMixture.call(
        (x, *parameters),
        cast(x, dtype).contiguous(),
        *parameters,
        *(None if m is None else m.reshape(-1) for m in masks),
        shape[-2],
        experts,
        GATES.index(gate),
        experts if top_k is None else top_k,
        ACTIVATIONS.index(activation),
        float(alpha),
        float(beta),
    )[0]


def check(x, parameters, masks, experts, gate, top_k, activation, alpha, beta):
    """Raise ValueError where an argument does not fit ``x`` and the number of experts."""
    _check_parameters(x, *parameters, experts, gate, top_k)
    checked_choice("expert_mixture", "activation", activation, ACTIVATIONS)
    checked_finite("expert_mixture", alpha=alpha, beta=beta)
    for name, mask in zip(("scope_mask", "pool_mask"), masks, strict=True):
        checked_mask("expert_mixture", name, mask, x.shape[:-1], x.device)
    if masks[1] is not None and gate != "sample":
        raise ValueError(f"expert_mixture: pool_mask is not used with gate={gate!r}; got {list(masks[1].shape)}")


def _check_parameters(x, down_weight, down_bias, up_weight, up_bias, gate_weight, gate_bias, experts, gate, top_k):
    if x.dim() < 2 or not x.is_floating_point():
        raise ValueError(f"expert_mixture: x must be floating [..., L, d], got {x.dtype} {list(x.shape)}")
    if not isinstance(experts, int) or experts < 1:
        raise ValueError(f"expert_mixture: experts must be a positive integer, got {experts!r}")
    checked_choice("expert_mixture", "gate", gate, GATES)
    d = x.shape[-1]
    checked_shape("expert_mixture", "down_weight", down_weight, [-1, d], like=x)
    stacked = down_weight.shape[0]
    if stacked < 1 or stacked % experts:
        raise ValueError(
            f"expert_mixture: experts must divide the rows of down_weight, got experts={experts}, {stacked} rows"
        )
    checked_shape("expert_mixture", "down_bias", down_bias, [stacked], like=x, optional=True)
    checked_shape("expert_mixture", "up_weight", up_weight, [d, stacked], like=x)
    checked_shape("expert_mixture", "up_bias", up_bias, [experts, d], like=x, optional=True)
    if gate == "uniform":
        for name, tensor in (("gate_weight", gate_weight), ("gate_bias", gate_bias), ("top_k", top_k)):
            if tensor is not None:
                got = tensor if name == "top_k" else list(tensor.shape)
                raise ValueError(f"expert_mixture: {name} is not used with gate='uniform'; got {got}")
        return
    checked_shape("expert_mixture", "gate_weight", gate_weight, [experts, d], like=x)
    checked_shape("expert_mixture", "gate_bias", gate_bias, [experts], like=x, optional=True)
    if top_k is not None and not (isinstance(top_k, int) and 1 <= top_k <= experts):
        raise ValueError(f"expert_mixture: top_k must be from 1 to experts = {experts}, got {top_k!r}")


class _ExpertMixture(Differentiable):
    """Keeps x, the parameters, the masks and two narrow tensors: u before the activation [N, K r], the gates."""

    @staticmethod
    def forward(x, *rest):
        return torch.ops.petx.expert_mixture_fwd(x, *operands(rest[:6], x.dtype), *rest[6:])

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.options = inputs[9:]
        ctx.save_for_backward(*inputs[:9], *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout, *_):
        if dout is None:
            return (None,) * (9 + len(ctx.options))
        x, *rest = ctx.saved_tensors
        parameters, masks, saved = rest[:6], rest[6:8], rest[8:]
        needs = sum(1 << i for i in range(7) if ctx.needs_input_grad[i])
        grads = torch.ops.petx.expert_mixture_bwd(
            dout.contiguous(), x, *operands(parameters, x.dtype), *masks, *saved, needs, *ctx.options
        )
        grads = [
            grad.to(leaf.dtype) if ctx.needs_input_grad[i] else None
            for i, (grad, leaf) in enumerate(zip(grads, (x, *parameters), strict=True))
        ]
        return (*grads, *(None,) * (2 + len(ctx.options)))


def _fwd_fake(x, *rest):
    stacked, (length, experts, gate) = rest[0].shape[0], rest[8:11]
    rows = math.prod(x.shape[:-1]) if x.shape[-1] else 0
    gate_rows = {"uniform": 0, "token": rows, "sample": rows // length if length else 0}[GATES[gate]]
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.empty_like(x), x.new_empty(rows, stacked), x.new_empty(gate_rows, experts, dtype=compute)


def _bwd_fake(dout, x, *rest):
    parameters, needs = rest[:6], rest[10]
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    return tuple(
        x.new_empty((0,) if t is None or not needs >> i & 1 else t.shape, dtype=x.dtype if i == 0 else compute)
        for i, t in enumerate((x, *parameters))
    )


ops.register("expert_mixture", _fwd_fake, _bwd_fake)
