"""PETAL's context enhancement of the first query token."""

import torch
from torch import Tensor, nn

from petx._checks import check_choice, check_finite, check_floating

__all__ = ["ContextEnhancement"]

CONTEXTS = ("off", "batch_mean", "per_sample")


class ContextEnhancement(nn.Module):
    r"""Adds ``weight · c`` to the first query token of a cross-attention's output (PETAL's released code).

    Args:
        context: what c is. ``"off"``: nothing is added. ``"batch_mean"``: the mean over the batch of the first query
            token before the cross-attention, as in the released code; a sample's result then depends on the others in
            its batch, while training and evaluating. ``"per_sample"``: the mean over the sample's own query tokens.
        weight: 0.1 in the released code.

    No parameters. ``queries [B, Q, d]`` are the query tokens before the cross-attention, ``output [B, Q, d]`` what it
    made of them; returns ``[B, Q, d]`` and leaves its arguments alone.

    Raises ValueError naming the argument, what came and what was wanted.
    """

    def __init__(self, context: str = "off", weight: float = 0.1) -> None:
        super().__init__()
        check_choice("ContextEnhancement", "context", context, CONTEXTS)
        check_finite("ContextEnhancement", weight=weight)
        self.context, self.weight = context, float(weight)

    def forward(self, output: Tensor, queries: Tensor) -> Tensor:
        """``output [B, Q, d]`` of the cross-attention and ``queries [B, Q, d]`` before it give ``[B, Q, d]``."""
        check_floating("ContextEnhancement", "output", output, "[B, Q, d]")
        check_floating("ContextEnhancement", "queries", queries, "[B, Q, d]")
        if output.shape != queries.shape or output.dim() != 3:
            raise ValueError(
                "ContextEnhancement: output and queries must be [B, Q, d] both, got "
                f"{list(output.shape)} and {list(queries.shape)}"
            )
        if self.context == "off" or not output.numel():
            return output
        if self.context == "batch_mean":
            context = queries[:, :1].mean(dim=0, keepdim=True)  # [1, 1, d]
        else:
            context = queries.mean(dim=1, keepdim=True)  # [B, 1, d]
        first = output[:, :1] + self.weight * context.to(output.dtype)
        return torch.cat([first, output[:, 1:]], dim=1)

    def extra_repr(self) -> str:
        return f"context={self.context!r}, weight={self.weight}"
