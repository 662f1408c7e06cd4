"""Hosts that transformers lacks: BART and T5 that read visual features beside text; facts of the full-size ones."""

from petx._discover import export_modules

__all__ = export_modules(__name__, __path__, globals())
