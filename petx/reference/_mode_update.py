"""Definition of `mode_update`."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from petx.reference._dropout import dropout_mask

__all__ = ["mode_update"]


def mode_update(
    x: Tensor,  # [T, d_in], or [T, R] if u is None
    u: Tensor | None,  # [R, d_in] or None
    v: Tensor,  # [d_out, R]
    cores: Tensor,  # [K, R, R] or [K, R]
    bases: Sequence[Tensor] | None = None,  # K tensors [T, d_out]
    seed: Tensor | None = None,  # int64, one element
    *,
    dropout: float = 0.0,
    shared_mask: bool = False,
) -> tuple[Tensor, ...]:
    """PETAL's update of K projections of one input: ``y_k = base_k + drop_k(x Uᵀ) M_k Vᵀ`` (arXiv 2312.12458).

    x [T, d_in] (or [T, R], already projected, if u is None), u [R, d_in], v [d_out, R], cores [K, R, R] or their
    diagonals [K, R], bases K tensors [T, d_out] -> K tensors [T, d_out].
    """
    hidden = x if u is None else F.linear(x, u)
    count, shape = cores.shape[0], hidden.shape
    masks: Sequence[Tensor | None] = [None] * count
    assert seed is not None or dropout == 0
    if seed is not None and dropout > 0 and shared_mask:
        masks = [dropout_mask(seed, tuple(shape), dropout, x.dtype, x.device)] * count
    elif seed is not None and dropout > 0:
        masks = dropout_mask(seed, (count, *shape), dropout, x.dtype, x.device).unbind()
    outputs = []
    for k, mask in enumerate(masks):
        kept = hidden if mask is None else hidden * mask
        mixed = kept * cores[k] if cores.dim() == 2 else kept @ cores[k]
        update = F.linear(mixed, v)
        outputs.append(update if bases is None else bases[k] + update)
    return tuple(outputs)
