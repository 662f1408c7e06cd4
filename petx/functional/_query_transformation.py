"""PETAL's query transformation: a small residual by channel, added to what a layer returns."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from petx import reference
from petx._checks import LARGEST, check_finite, check_floating, check_shape
from petx.functional._autograd import Differentiable, dtypes_of
from petx.functional._operation import (
    ARGUMENT_ERRORS,
    NUMBERS,
    Operation,
    as_leaves,
    cast,
    narrow_bits,
    needed_bits,
    operands,
)

__all__ = ["query_transformation"]


def query_transformation(
    x: Tensor, scale: Tensor, shift: Tensor, to: Tensor | None = None, *, factor: float = 0.1
) -> Tensor:
    """``to + factor (x ⊙ a + b)``, by channel (PETAL's released code, after Aurora's gated query transformation).

    Args:
        x: ``[..., d]``, d at least 1. Floating. Rows of d values that lie apart, as those of a slice along the tokens
            do, are read where they are. scale, shift: a and b, ``[d]``.
        to: ``[..., d]`` like x, what the residual is added to, or None for the residual alone.
        factor: finite.

    Returns ``[..., d]`` in x's dtype, with ``to`` in the wider one of both. scale and shift may be of another floating
    dtype; their gradients come back in it. Under autocast it computes in its arguments' own dtypes, as an addition
    does. The gradient of ``to`` is the result's, not a copy. Not twice differentiable.

    Raises ValueError naming the argument, what came and what was wanted.
    """
    checked = type(factor) in NUMBERS and -LARGEST <= factor <= LARGEST
    if checked and OPERATION.can_try_fast_path(x, scale):
        try:
            return torch.ops.petx.query_transformation_fwd(x, scale, shift, to, factor)
        except ARGUMENT_ERRORS:
            pass
    return OPERATION.call_or_explain(x, scale, _run, check, (x, scale, shift, to, factor), check_first=not checked)


def check(x: Any, scale: Any, shift: Any, to: Any, factor: Any) -> None:
    """Raise ValueError if an argument does not fit the others."""
    check_floating("query_transformation", "x", x, "[..., d] with d of at least 1", least_dims=1)
    width = x.shape[-1]
    if width < 1:
        raise ValueError(f"query_transformation: x must be [..., d] with d of at least 1, got {list(x.shape)}")
    check_shape("query_transformation", "scale", scale, [width], like=x)
    check_shape("query_transformation", "shift", shift, [width], like=x)
    if to is not None:
        check_shape("query_transformation", "to", to, list(x.shape), like=x)
    check_finite("query_transformation", factor=factor)


def _run(x: Tensor, scale: Tensor, shift: Tensor, to: Tensor | None, factor: float) -> Tensor:
    if to is not None and to.dtype != x.dtype:
        dtype = torch.promote_types(x.dtype, to.dtype)
        x, to = cast(x, dtype), cast(to, dtype)
    if OPERATION.runs_reference(x, scale):
        scale, shift = cast(scale, x.dtype), cast(shift, x.dtype)
        return reference.query_transformation(x, scale, shift, to, factor=factor)
    return _QueryTransformation.call((x, scale, shift, to), x, scale, shift, to, float(factor))


class _QueryTransformation(Differentiable):
    """Keeps x and the scale, which exist anyway; the gradient of ``to`` is the result's."""

    LEAVES = slice(3)

    @staticmethod
    def prepare(inputs: tuple[Any, ...], copies: Any) -> tuple[Any, ...]:
        x, scale, shift, *rest = inputs
        return (x, *operands((scale, shift), x.dtype), *rest)

    @staticmethod
    def forward(x: Tensor, scale: Tensor, shift: Tensor, to: Tensor | None, factor: float) -> Tensor:
        return torch.ops.petx.query_transformation_fwd(x, *operands((scale, shift), x.dtype), to, factor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, scale, *_, ctx.factor = inputs
        ctx.dtypes = dtypes_of(inputs[:3])
        ctx.save_for_backward(x, scale)
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad
        if dout is None:
            return (None,) * 5
        grads: list[Tensor | None] = [None] * 3
        if bits := needed_bits(needs[:3]):
            x, scale = ctx.saved_tensors
            (scale,) = operands((scale,), x.dtype)
            narrow = narrow_bits(ctx.dtypes, x.dtype)
            found = torch.ops.petx.query_transformation_bwd(dout, x, scale, bits, narrow, ctx.factor)
            grads = as_leaves(found, ctx.dtypes, needs)
        return (*grads, dout if needs[3] else None, None)


class _Operation(Operation):
    def _gradient_shapes(self, given: SimpleNamespace) -> tuple[Tensor, ...]:
        given.shift = given.scale  # whose gradient is a sum of dout's rows: the backward does not get it
        return super()._gradient_shapes(given)


def _shapes(given: SimpleNamespace) -> Tensor:
    return given.x.new_empty(*given.x.shape[:-1], given.scale.shape[0])


# It has no bottleneck: a certificate takes the width for its rank.
OPERATION = _Operation("query_transformation", ("x", "scale", "shift"), activations=("x",), rank_dim=-1, shapes=_shapes)
