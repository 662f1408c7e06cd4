"""Drop-in ``torch.nn`` modules over :mod:`petx.functional`."""

from petx.nn.context_enhancement import ContextEnhancement as ContextEnhancement
from petx.nn.expert_mixture import ExpertMixture as ExpertMixture
from petx.nn.gated_adapter import GatedAdapter as GatedAdapter
from petx.nn.gated_adapter import Tail as Tail
from petx.nn.mode_cores import ModeCores as ModeCores
from petx.nn.mode_update import ModeFactors as ModeFactors
from petx.nn.mode_update import ModeLinear as ModeLinear
from petx.nn.mode_update import ModeProjections as ModeProjections
from petx.nn.phm_linear import PHMLinear as PHMLinear
from petx.nn.query_transformation import QueryTransformation as QueryTransformation
from petx.nn.value_adapter import ValueAdapter as ValueAdapter
from petx.nn.value_adapter import ValueAdapters as ValueAdapters

__all__ = [
    "ContextEnhancement",
    "ExpertMixture",
    "GatedAdapter",
    "ModeCores",
    "ModeFactors",
    "ModeLinear",
    "ModeProjections",
    "PHMLinear",
    "QueryTransformation",
    "Tail",
    "ValueAdapter",
    "ValueAdapters",
]
