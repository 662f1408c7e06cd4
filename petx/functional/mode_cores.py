"""PETAL's cores: every mode vector's contraction with the shared core tensor, behind a learnable threshold."""

import math

import torch
from torch.autograd.function import once_differentiable

from petx import ops, reference
from petx.functional._arguments import GATES, cast, checked_shape, checked_threshold, operands
from petx.functional._autograd import MISFITS, Differentiable, guarded, operator_checks, straight

__all__ = ["mode_cores"]


def mode_cores(core, modes, threshold=None, *, gate="none", temperature=1.0):
    r"""``M_n = gate(C) ×₃ p_n`` for all mode vectors at once (PETAL, arXiv 2312.12458, dynamic mode approximation).

    Args:
        core: ``[R, R, R]``, the full core, or ``[R]``, the weights λ of a CP decomposition.
        modes: ``[n, R]``, the mode vectors of all layers and projections, stacked.
        threshold: Γ, ``[1]`` or ``[R]`` (then for the core's last index); None with ``gate="none"``.
        gate: ``"none"``; ``"soft"``, sign(c) max(\|c\| - Γ, 0); ``"sigmoid"``, c σ((\|c\| - Γ) / temperature); or
            ``"hard"``, c where \|c\| > Γ, with the gradient passed straight through to c and the soft gate's to Γ.
        temperature: of the sigmoid, positive.

    Returns ``[n, R, R]``, for a core ``[R]`` the diagonals ``[n, R]``, in ``core``'s dtype, under autocast too:
    cores are small, and every row of an activation passes through them. Not twice differentiable.

    Raises ValueError naming the argument, what came and what was wanted.
    """
    arguments = (core, modes, threshold, gate, temperature)
    if gate in GATES and temperature < math.inf and straight("mode_cores", core):
        try:
            if core.dtype == modes.dtype:
                return torch.ops.petx.mode_cores_fwd(core, modes, threshold, GATES.index(gate), temperature)
        except MISFITS:
            pass
    if not operator_checks("mode_cores", core):
        check(*arguments)
        return _run(*arguments)
    if gate not in GATES or not temperature < math.inf:
        check(*arguments)
    return guarded(_run, check, arguments)


def check(core, modes, threshold, gate, temperature):
    """Raise ValueError where an argument does not fit the others."""
    if not isinstance(core, torch.Tensor):
        raise ValueError(f"mode_cores: core must be a tensor [R, R, R] or [R], got {type(core).__name__}")
    if core.dim() not in (1, 3) or len(set(core.shape)) != 1 or core.shape[0] < 1 or not core.is_floating_point():
        raise ValueError(f"mode_cores: core must be floating [R, R, R] or [R], got {core.dtype} {list(core.shape)}")
    rank = core.shape[0]
    checked_shape("mode_cores", "modes", modes, [-1, rank], like=core)
    checked_threshold("mode_cores", threshold, gate, temperature, (rank,), core)


def _run(core, modes, threshold, gate, temperature):
    if not ops.takes("mode_cores", core):
        modes, threshold = cast(modes, core.dtype), cast(threshold, core.dtype)
        with torch.autocast(core.device.type, enabled=False):
            return reference.mode_cores(core, modes, threshold, gate=gate, temperature=temperature)
    leaves = (core, modes, threshold)
    return _ModeCores.call(leaves, *leaves, GATES.index(gate), float(temperature))


class _ModeCores(Differentiable):
    """Keeps its inputs and nothing else."""

    @staticmethod
    def forward(core, modes, threshold, gate, temperature):
        return torch.ops.petx.mode_cores_fwd(*operands((core, modes, threshold), core.dtype), gate, temperature)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.options = inputs[3:]
        ctx.save_for_backward(*inputs[:3])

    @staticmethod
    @once_differentiable
    def backward(ctx, dcores):
        inputs, needs = ctx.saved_tensors, ctx.needs_input_grad
        bits = sum(1 << i for i in range(3) if needs[i])
        grads = torch.ops.petx.mode_cores_bwd(
            dcores.contiguous(), *operands(inputs, inputs[0].dtype), bits, *ctx.options
        )
        return (*(g.to(t.dtype) if n else None for g, t, n in zip(grads, inputs, needs, strict=False)), None, None)


def _fwd_fake(core, modes, *_):
    return core.new_empty(modes.shape[0], *core.shape[1:] if core.dim() > 1 else core.shape)


def _bwd_fake(dcores, core, modes, threshold, needs, *_):
    compute = torch.promote_types(core.dtype, torch.float32)
    return tuple(
        core.new_empty((0,) if t is None or not needs >> i & 1 else t.shape, dtype=compute)
        for i, t in enumerate((core, modes, threshold))
    )


ops.register("mode_cores", _fwd_fake, _bwd_fake)
