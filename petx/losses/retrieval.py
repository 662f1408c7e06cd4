"""Losses of image-text retrieval, over the pairs of a batch: contrastive, and the negatives of matching.

As ALBEF (arXiv 2107.07651), BLIP and BLIP-2 (arXiv 2301.12597) have them, without momentum models.
"""

from typing import Any

import torch
from torch import Tensor

from petx._checks import check_floating, check_tensor

__all__ = ["contrastive_loss", "hard_negatives"]


def contrastive_loss(similarity: Tensor, same: Tensor) -> Tensor:
    r"""Image-text contrastive loss, InfoNCE over the batch both ways:

    .. math:: -\frac{1}{2B} \sum_{ij} t_{ij} \big(\log \mathrm{softmax}_j s_{ij} + \log \mathrm{softmax}_j s_{ji}\big)

    Args:
        similarity: s ``[B, B]``, of image i and caption j, divided by the temperature already.
        same: ``[B, B]`` bool, whether image i and image j are one, so that caption j is right for image i. t is
            ``same``, each row divided by its sum. Its diagonal is true.

    Returns a scalar. Raises ValueError for tensors of another shape or dtype.
    """
    _check("contrastive_loss", similarity, same)
    target = same.to(similarity.dtype)
    target = target / target.sum(1, keepdim=True)
    to_text, to_image = similarity.log_softmax(1), similarity.T.log_softmax(1)
    return -(target * (to_text + to_image)).sum(1).mean() / 2


def hard_negatives(similarity: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """``(images, captions)``, int64 ``[N]`` each: pairs that do not belong together, by which matching is learnt.

    For every image a caption of another, then for every caption another image, drawn with the probability that the
    softmax of ``similarity [B, B]`` gives it among those (torch's generator), so that what is hard to tell apart comes
    often. A row whose images are all the ``same`` has none; N is 2B if there is no such row. Without a gradient.

    Raises ValueError as :func:`contrastive_loss`, and for a similarity that is not finite.
    """
    _check("hard_negatives", similarity, same)
    finite = similarity.detach().isfinite()
    if not bool(finite.all()):
        bad = int(finite.numel() - finite.sum())
        raise ValueError(
            f"hard_negatives: similarity must be finite, got {bad} of {finite.numel()} values that are not"
        )
    rows = torch.arange(len(same), device=same.device)[~same.all(1)]
    if not len(rows):
        return rows, rows
    least = torch.finfo(torch.float32).tiny  # so that some negative can be drawn however small they are
    drawn = []
    for one in (similarity, similarity.T):
        weights = one.detach().float()[rows].masked_fill(same[rows], -torch.inf).softmax(1).clamp(min=least)
        drawn.append(torch.multinomial(weights.masked_fill(same[rows], 0.0), 1).flatten())
    captions, images = drawn
    return torch.cat([rows, images]), torch.cat([captions, rows])


def _check(owner: str, similarity: Any, same: Any) -> None:
    check_floating(owner, "similarity", similarity, "[B, B]")
    if similarity.dim() != 2 or similarity.shape[0] != similarity.shape[1] or not len(similarity):
        raise ValueError(f"{owner}: similarity must be [B, B] with B at least 1, got {list(similarity.shape)}")
    check_tensor(owner, "same", same, f"a bool tensor {list(similarity.shape)}")
    if same.dtype != torch.bool or same.shape != similarity.shape or not bool(same.diagonal().all()):
        raise ValueError(
            f"{owner}: same must be bool {list(similarity.shape)} with a true diagonal, got {same.dtype} "
            f"{list(same.shape)}"
        )
