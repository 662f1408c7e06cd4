"""VL-PET's decoder module beside the cross-attention's value projection, which is a site of `gated_adapter`."""

from typing import Any

from torch import Tensor

from petx._checks import check_device, check_floating, check_shape
from petx.functional._gated_adapter import gated_adapter
from petx.functional._operation import ARGUMENT_ERRORS

__all__ = ["value_adapter", "value_adapters"]


def value_adapter(
    e: Tensor,
    v: Tensor,
    down_weight: Tensor,
    down_bias: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    *,
    activation: str = "gelu_tanh",
    scale: float = 1.0,
) -> Tensor:
    """``v + up(gelu(down(e)))``, VL-PET's decoder module beside the cross-attention's value projection.

    ``e [..., L, d_e]`` is the encoder output, ``v [..., L, d]`` the frozen projection of it (arXiv 2308.09804,
    section 3.4); weights as in :func:`gated_adapter` with ``placement="parallel"``, which this is. Returns
    ``[..., L, d]`` in v's dtype, under autocast the autocast dtype.

    Raises ValueError naming the argument, what came and what was wanted.
    """
    try:
        return gated_adapter(
            v, e, down_weight, down_bias, up_weight, up_bias, activation=activation, placement="parallel", scale=scale
        )
    except ARGUMENT_ERRORS:
        check_value("value_adapter", e, v)
        raise


def check_value(owner: str, e: Any, v: Any) -> None:
    """Raise ValueError if e and v do not fit each other, by the names that a value adapter's caller gave them."""
    check_floating(owner, "e", e, "[..., L, d_e]", least_dims=2)
    check_floating(owner, "v", v, "[..., L, d]", least_dims=2)
    if v.shape[:-1] != e.shape[:-1]:
        raise ValueError(f"{owner}: v must be {[*e.shape[:-1], 'd']} like e, got {list(v.shape)}")
    check_device(owner, "v", v, e)


def value_adapters(
    e: Tensor,
    v: Tensor,
    down_weight: Tensor,
    down_bias: Tensor | None,
    up_weight: Tensor,
    up_bias: Tensor | None,
    *,
    activation: str = "gelu_tanh",
    scale: float = 1.0,
) -> Tensor:
    """:func:`value_adapter` of L decoder layers at once, which all read one encoder output: ``e`` is read once.

    ``e [..., L_e, d_e]``; ``v [..., L_e, L, d]``, the L frozen value projections of it, as one GEMM with their
    weights stacked gives them; ``down_weight [L, r, d_e]``, ``down_bias [L, r]`` or None, ``up_weight [L, d, r]``,
    ``up_bias [L, d]`` or None. Returns ``[..., L_e, L, d]``.

    It is :func:`gated_adapter` with the layers as heads: their bottlenecks stacked, a block-diagonal up projection.

    Raises ValueError naming the argument, what came and what was wanted.
    """
    check_floating("value_adapters", "e", e, "[..., L_e, d_e]", least_dims=2)
    check_floating("value_adapters", "v", v, "[..., L_e, L, d]", least_dims=3)
    check_floating("value_adapters", "down_weight", down_weight, "[L, r, d_e]")
    if down_weight.dim() != 3 or not down_weight.shape[0]:
        raise ValueError(f"value_adapters: down_weight must be [L, r, d_e], got {list(down_weight.shape)}")
    layers, rank = down_weight.shape[:2]
    wanted = {"v": [*e.shape[:-1], layers, -1], "down_weight": [layers, rank, e.shape[-1]], "down_bias": [layers, rank]}
    wanted |= {"up_weight": [layers, v.shape[-1], rank], "up_bias": [layers, v.shape[-1]]}
    given = dict(v=v, down_weight=down_weight, down_bias=down_bias, up_weight=up_weight, up_bias=up_bias)
    for name, shape in wanted.items():
        check_shape("value_adapters", name, given[name], shape, like=e, optional="bias" in name)
    flat: Any = {n: None if t is None else t.flatten(0, 1) for n, t in given.items() if n != "v"}
    out = gated_adapter(
        v.flatten(-2), e, **flat, heads=layers, activation=activation, placement="parallel", scale=scale
    )
    return out.unflatten(-1, v.shape[-2:])
