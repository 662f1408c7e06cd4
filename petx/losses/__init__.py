"""Losses of PETAL (arXiv 2312.12458) beside the language model's own."""

from petx._discover import export_modules

__all__ = export_modules(__name__, __path__, globals())
