"""The mean one-hot of a sample's target tokens, kept as its columns instead of a vocabulary-wide row."""

from typing import NamedTuple

import torch
from torch import Tensor

from petx._checks import check_choice, check_size, check_tensor, refuse_type

__all__ = ["LabelBag", "label_bag"]

IGNORED = -100


class LabelBag(NamedTuple):
    r"""The rows :math:`\bar y_b` of ``[B, vocabulary]`` by what is not zero in them; made by :func:`label_bag`.

    ``columns [B, L]`` names the columns (repeated as the tokens repeat, 0 for a position that does not count),
    ``weights [B, L]`` what each position adds to its column, ``means [B, L]`` the value :math:`\bar y` has there.
    """

    columns: Tensor
    weights: Tensor
    means: Tensor

    @property
    def shape(self) -> torch.Size:
        """``[B, L]``."""
        return self.columns.shape

    @property
    def device(self) -> torch.device:
        """Of all three tensors."""
        return self.columns.device

    def take(self, rows: Tensor) -> "LabelBag":
        """The bag of other samples, ``rows [B]``."""
        return LabelBag(*(part[rows] for part in self))

    def to(self, dtype: torch.dtype) -> "LabelBag":
        """The bag with weights and means in ``dtype``."""
        return LabelBag(self.columns, self.weights.to(dtype), self.means.to(dtype))


def label_bag(
    labels: Tensor, vocabulary: int, *, ignored: str = "skip", dtype: torch.dtype = torch.float32
) -> LabelBag:
    """``labels [B, L]`` (int64, -100 for a position that does not count) as a :class:`LabelBag`.

    ``ignored="skip"`` averages over the positions that count, and a sample without any is a row of zeros;
    ``"as_zero"`` is the authors' code: -100 becomes token 0 and the mean divides by the padded length L.

    Raises ValueError for labels of another shape or dtype and, on the CPU, for a token outside the vocabulary (on a GPU
    torch's own device assertion reports it, without a synchronisation here).
    """
    check_choice("label_bag", "ignored", ignored, ("skip", "as_zero"))
    check_size("label_bag", vocabulary=vocabulary)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        refuse_type("label_bag", "dtype", "a floating torch.dtype", dtype)
    check_tensor("label_bag", "labels", labels, "a tensor int64 [B, L]")
    if labels.dim() != 2 or labels.dtype != torch.int64 or labels.shape[1] < 1:
        raise ValueError(
            f"label_bag: labels must be int64 [B, L] with L at least 1, got {labels.dtype} {list(labels.shape)}"
        )
    counts = labels != IGNORED
    if labels.device.type == "cpu" and bool(((labels < 0) | (labels >= vocabulary))[counts].any()):
        wrong = labels[counts & ((labels < 0) | (labels >= vocabulary))][0].item()
        raise ValueError(f"label_bag: labels must be in [0, {vocabulary}) or {IGNORED}, got {wrong}")
    if ignored == "as_zero":
        labels, counts = labels.where(counts, 0), torch.ones_like(counts)
    # A token's share is how often it occurs in its row; positions that do not count sort behind every token.
    sortable = labels.where(counts, vocabulary).contiguous()
    ordered = sortable.sort(dim=1).values
    repeats = torch.searchsorted(ordered, sortable, right=True) - torch.searchsorted(ordered, sortable)
    share = counts.sum(1, keepdim=True).clamp(min=1).to(dtype).reciprocal()
    weights = counts.to(dtype) * share
    return LabelBag(labels.where(counts, 0), weights, weights * repeats)
