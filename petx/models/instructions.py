"""Query features under several instructions about one image, joined into one tensor."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from petx._checks import LARGEST, check_choice, check_tensor, refuse_type

__all__ = ["aggregate_instructions"]

METHODS = ("mean", "attention_score")


def aggregate_instructions(features: Iterable[Tensor], method: str = "mean", scale: str | float = "width") -> Tensor:
    r"""The projected query features of n instructions as those of one.

    ``"mean"``: :math:`Z = \frac1n\sum_j Z_j`. ``"attention_score"``: the first instruction asks the others,
    :math:`Z = \frac1n\bigl(Z_1 + \sum_{j>1} S_{1j} Z_j\bigr)` with
    :math:`S_{1j} = \mathrm{softmax}(Z_1 Z_j^\top / \text{scale})` over the rows' last dimension: the only concrete form
    of the "normalized attention weights between instruction features" (arXiv 2312.12458).

    Args:
        features: n tensors ``[B, Q, D]`` of one dtype, n at least 1. With n = 1 the result is the tensor itself.
        method: ``"mean"`` or ``"attention_score"``.
        scale: ``"width"`` (D, the authors' code), ``"sqrt_width"`` (√D, as in attention) or a positive number.

    Returns ``[B, Q, D]``. Raises ValueError naming the argument, what came and what was wanted.
    """
    if isinstance(features, Tensor | str) or not isinstance(features, Iterable):
        refuse_type("aggregate_instructions", "features", "several tensors [B, Q, D]", features)
    features = list(features)
    check_choice("aggregate_instructions", "method", method, METHODS)
    if not features:
        raise ValueError("aggregate_instructions: features must hold at least one tensor [B, Q, D], got none")
    first = features[0]
    for j, tensor in enumerate(features):
        check_tensor("aggregate_instructions", f"features[{j}]", tensor, "a tensor [B, Q, D]")
        if tensor.dim() != 3 or tensor.shape != first.shape or not tensor.is_floating_point():
            wanted = list(first.shape) if first.dim() == 3 else "[B, Q, D]"
            raise ValueError(
                f"aggregate_instructions: features[{j}] must be floating {wanted}, "
                f"got {tensor.dtype} {list(tensor.shape)}"
            )
        if tensor.device != first.device or tensor.dtype != first.dtype:
            raise ValueError(
                f"aggregate_instructions: features[{j}] must be {first.dtype} on {first.device} as features[0], "
                f"got {tensor.dtype} on {tensor.device}"
            )
    divisor = _scale(scale, first.shape[-1])
    if len(features) == 1:
        return first
    if method == "mean":
        return torch.stack(features).mean(0)
    total = first
    for other in features[1:]:
        # Divided first, as released: in a 16-bit dtype the product of wide features could overflow.
        total = total + torch.softmax((first / divisor) @ other.mT, dim=-1) @ other
    return total / len(features)


def _scale(scale: str | float, width: int) -> float:
    known = {"width": float(width), "sqrt_width": math.sqrt(width)}
    value = known.get(scale) if isinstance(scale, str) else scale
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LARGEST:
        raise ValueError(
            f"aggregate_instructions: scale must be 'width', 'sqrt_width' or a positive number, got {scale!r}"
        )
    return float(value)
