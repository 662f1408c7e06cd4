"""Functional forms of petx's operations: differentiable, any device, fused if a kernel was built."""

from petx.functional._cp_reconstruct import cp_reconstruct as cp_reconstruct
from petx.functional._expert_mixture import expert_mixture as expert_mixture
from petx.functional._gated_adapter import gated_adapter as gated_adapter
from petx.functional._mode_cores import mode_cores as mode_cores
from petx.functional._mode_update import mode_update as mode_update
from petx.functional._query_transformation import query_transformation as query_transformation
from petx.functional._value_adapter import value_adapter as value_adapter
from petx.functional._value_adapter import value_adapters as value_adapters

__all__ = [
    "cp_reconstruct",
    "expert_mixture",
    "gated_adapter",
    "mode_cores",
    "mode_update",
    "query_transformation",
    "value_adapter",
    "value_adapters",
]
