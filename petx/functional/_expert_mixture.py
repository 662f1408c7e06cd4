"""PETAL's mixture of instruction experts: one differentiable function."""

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from petx import reference
from petx._checks import (
    LARGEST,
    check_choice,
    check_finite,
    check_floating,
    check_mask,
    check_shape,
    check_size,
    is_integer,
    told,
)
from petx.functional._operation import ARGUMENT_ERRORS, NUMBERS, Operation, autocast_dtype, cast

__all__ = ["expert_mixture"]

# In the order of the enums in csrc/kernels/expert_mixture.h.
GATES = ("uniform", "token", "sample")
ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh")

# The differentiable arguments, in the operator's order.
ARGUMENTS = "x down_weight down_bias up_weight up_bias gate_weight gate_bias".split()


def expert_mixture(
    x: Tensor,
    down_weight: Tensor,
    down_bias: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    *,
    experts: int,
    gate: str = "uniform",
    gate_weight: Tensor | None = None,
    gate_bias: Tensor | None = None,
    top_k: int | None = None,
    activation: str | None = None,
    alpha: float = 0.6,
    beta: float = 0.4,
    scope_mask: Tensor | None = None,
    pool_mask: Tensor | None = None,
) -> Tensor:
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
    differentiable. If no kernel exists for ``x``'s device, the readable reference runs (``petx info`` says which).

    Raises ValueError naming the argument, what came and what was wanted.
    """
    parameters = (down_weight, down_bias, up_weight, up_bias, gate_weight, gate_bias)
    return mixture(x, parameters, (scope_mask, pool_mask), experts, gate, top_k, activation, alpha, beta)


def mixture(
    x: Tensor,
    parameters: Any,
    masks: tuple[Tensor | None, Tensor | None],
    experts: int,
    gate: str,
    top_k: int | None,
    activation: str | None,
    alpha: float,
    beta: float,
) -> Tensor:
    """:func:`expert_mixture` of what a layer has: ``parameters`` in the order of :data:`ARGUMENTS`, both masks."""
    # What the operator does not see or would not refuse.
    checked = type(alpha) in NUMBERS and type(beta) in NUMBERS and abs(alpha) <= LARGEST and abs(beta) <= LARGEST
    checked = checked and type(gate) is str and gate in GATES
    checked = (
        checked
        and isinstance(activation, str | None)
        and activation in ACTIVATIONS
        and (top_k is None or gate != "uniform")
    )
    checked = checked and masks[0] is None and masks[1] is None
    if checked and OPERATION.can_try_fast_path(x, parameters[0]):
        try:
            if x.dtype is parameters[0].dtype and x.is_contiguous():
                sizes = (experts, GATES.index(gate), experts if top_k is None else top_k)
                options = (*sizes, ACTIVATIONS.index(activation), alpha, beta)
                return torch.ops.petx.expert_mixture_fwd(x, *parameters, None, None, *options)[0]
        except ARGUMENT_ERRORS:
            pass
    arguments = (x, parameters, masks, experts, gate, top_k, activation, alpha, beta)
    return OPERATION.call_or_explain(x, parameters[0], _run, check, arguments, check_first=not checked)


def _run(
    x: Tensor,
    parameters: Any,
    masks: Any,
    experts: int,
    gate: str,
    top_k: int | None,
    activation: str | None,
    alpha: float,
    beta: float,
) -> Tensor:
    dtype, shape = autocast_dtype(x), x.shape
    masks = [None if m is None else m.ne(0) for m in masks]
    x = cast(x, dtype)
    if OPERATION.runs_reference(x, parameters[0]):
        samples = math.prod(shape[:-2])
        y = reference.expert_mixture(
            x.reshape(samples, *shape[-2:]),
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
    return OPERATION.differentiable(
        x.contiguous(),
        *parameters,
        *(None if m is None else m.reshape(-1) for m in masks),
        experts,
        GATES.index(gate),
        experts if top_k is None else top_k,
        ACTIVATIONS.index(activation),
        float(alpha),
        float(beta),
    )[0]


def check(
    x: Any,
    parameters: Any,
    masks: Any,
    experts: Any,
    gate: Any,
    top_k: Any,
    activation: Any,
    alpha: Any,
    beta: Any,
) -> None:
    """Raise ValueError if an argument does not fit ``x`` and the number of experts."""
    check_floating("expert_mixture", "x", x, "[..., L, d]", least_dims=2)
    check_size("expert_mixture", experts=experts)
    check_choice("expert_mixture", "gate", gate, GATES)
    _check_parameters(x, parameters, experts, gate, top_k)
    check_choice("expert_mixture", "activation", activation, ACTIVATIONS)
    check_finite("expert_mixture", alpha=alpha, beta=beta)
    for name, mask in zip(("scope_mask", "pool_mask"), masks, strict=True):
        check_mask("expert_mixture", name, mask, x.shape[:-1], x)
    if masks[1] is not None and gate != "sample":
        raise ValueError(f"expert_mixture: pool_mask is not used with gate={gate!r}; got {list(masks[1].shape)}")


def _check_parameters(x: Tensor, parameters: Any, experts: int, gate: str, top_k: Any) -> None:
    down_weight, down_bias, up_weight, up_bias, gate_weight, gate_bias = parameters
    d = x.shape[-1]
    check_shape("expert_mixture", "down_weight", down_weight, [-1, d], like=x)
    stacked = down_weight.shape[0]
    if stacked < 1 or stacked % experts:
        raise ValueError(
            f"expert_mixture: experts must divide the rows of down_weight, got experts={experts}, {stacked} rows"
        )
    check_shape("expert_mixture", "down_bias", down_bias, [stacked], like=x, optional=True)
    check_shape("expert_mixture", "up_weight", up_weight, [d, stacked], like=x)
    check_shape("expert_mixture", "up_bias", up_bias, [experts, d], like=x, optional=True)
    if gate == "uniform":
        for name, value in (("gate_weight", gate_weight), ("gate_bias", gate_bias), ("top_k", top_k)):
            if value is not None:
                raise ValueError(f"expert_mixture: {name} is not used with gate='uniform'; got {told(value)}")
        return
    check_shape("expert_mixture", "gate_weight", gate_weight, [experts, d], like=x)
    check_shape("expert_mixture", "gate_bias", gate_bias, [experts], like=x, optional=True)
    if top_k is not None and not (is_integer(top_k) and 1 <= top_k <= experts):
        raise ValueError(f"expert_mixture: top_k must be from 1 to experts = {experts}, got {told(top_k)}")


def _shapes(given: SimpleNamespace) -> tuple[Tensor, ...]:
    """The result, u before the activation [N, K r], and the gates."""
    x = given.x
    rows = math.prod(x.shape[:-1]) if x.shape[-1] else 0
    gate_rows = {"uniform": 0, "token": rows, "sample": math.prod(x.shape[:-2]) if rows else 0}[GATES[given.gate]]
    compute = torch.promote_types(x.dtype, torch.float32)
    return (
        torch.empty_like(x),
        x.new_empty(rows, given.down_weight.shape[0]),
        x.new_empty(gate_rows, given.experts, dtype=compute),
    )


# It keeps x, the parameters, the masks and two narrow tensors: u before the activation [N, K r], the gates.
OPERATION = Operation(
    "expert_mixture",
    ARGUMENTS,
    activations=("x",),
    constants=("scope_mask", "pool_mask"),
    rank_dim=0,
    shapes=_shapes,
    path="PETX_EXPERT_MIXTURE",
)
