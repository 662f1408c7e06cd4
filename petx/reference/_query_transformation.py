"""Definition of `query_transformation`."""

from torch import Tensor

__all__ = ["query_transformation"]


def query_transformation(
    x: Tensor, scale: Tensor, shift: Tensor, to: Tensor | None = None, *, factor: float = 0.1
) -> Tensor:
    """``to + factor (x ⊙ a + b)`` (PETAL's released code, after Aurora's gated query transformation).

    x [..., d], scale a and shift b [d], to [..., d] or None for none -> [..., d].
    """
    residual = factor * (x * scale + shift)
    return residual if to is None else to + residual
