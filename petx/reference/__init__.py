"""Every operation of petx in a few lines of torch: the specification the kernels are held to.

A function here takes the tensors of one call, already cast to one dtype, and returns what the kernel returns.
It is differentiable by autograd, runs on any device, and is what :mod:`petx.functional` falls back to if no kernel was
built. Nothing here is fast.
"""

from petx.reference._activation import gelu as gelu
from petx.reference._cp_reconstruct import cp_reconstruct as cp_reconstruct
from petx.reference._dropout import dropout_mask as dropout_mask
from petx.reference._dropout import philox_uniform as philox_uniform
from petx.reference._expert_mixture import expert_mixture as expert_mixture
from petx.reference._gated_adapter import block_diagonal_linear as block_diagonal_linear
from petx.reference._gated_adapter import gated_adapter as gated_adapter
from petx.reference._mode_cores import mode_cores as mode_cores
from petx.reference._mode_update import mode_update as mode_update
from petx.reference._query_transformation import query_transformation as query_transformation
from petx.reference._threshold_gate import threshold_gate as threshold_gate

__all__ = [
    "block_diagonal_linear",
    "cp_reconstruct",
    "dropout_mask",
    "expert_mixture",
    "gated_adapter",
    "gelu",
    "mode_cores",
    "mode_update",
    "philox_uniform",
    "query_transformation",
    "threshold_gate",
]
