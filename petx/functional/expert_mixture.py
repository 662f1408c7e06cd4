"""PETAL's mixture of instruction experts: one differentiable function."""

from petx import reference
from petx.functional._arguments import autocast_dtype, cast, checked_choice, checked_finite, checked_mask, checked_shape

__all__ = ["expert_mixture"]

GATES = ("uniform", "token", "sample")
ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh")


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
    differentiable.

    Raises ValueError naming the argument, what came and what was wanted.
    """
    check(x, down_weight, down_bias, up_weight, up_bias, experts, gate, gate_weight, gate_bias, top_k)
    checked_choice("expert_mixture", "activation", activation, ACTIVATIONS)
    checked_finite("expert_mixture", alpha=alpha, beta=beta)
    for name, mask in (("scope_mask", scope_mask), ("pool_mask", pool_mask)):
        checked_mask("expert_mixture", name, mask, x.shape[:-1], x.device)
    if pool_mask is not None and gate != "sample":
        raise ValueError(f"expert_mixture: pool_mask is not used with gate={gate!r}; got {list(pool_mask.shape)}")
    dtype, shape = autocast_dtype(x), x.shape
    tensors = (x, down_weight, down_bias, up_weight, up_bias, gate_weight, gate_bias)
    x, *parameters = (cast(t, dtype) for t in tensors)
    masks = [None if m is None else m.ne(0).reshape(-1, shape[-2]) for m in (scope_mask, pool_mask)]
    y = reference.expert_mixture(
        x.reshape(-1, *shape[-2:]),
        *parameters,
        *masks,
        experts=experts,
        gate=gate,
        top_k=top_k,
        activation=activation,
        alpha=float(alpha),
        beta=float(beta),
    )
    return y.reshape(shape)


def check(x, down_weight, down_bias, up_weight, up_bias, experts, gate, gate_weight, gate_bias, top_k):
    """Raise ValueError where an argument does not fit ``x`` and the number of experts."""
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
