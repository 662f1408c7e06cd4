"""Drop-in layers over :func:`petx.functional.mode_update`: PETAL's update beside frozen projections."""

from petx.nn.mode_update.mode_factors import ModeFactors as ModeFactors
from petx.nn.mode_update.mode_linear import ModeLinear as ModeLinear
from petx.nn.mode_update.mode_projections import ModeProjections as ModeProjections

__all__ = ["ModeFactors", "ModeLinear", "ModeProjections"]
