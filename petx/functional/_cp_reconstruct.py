"""PETAL's adapted weights written out, for all modules that share factors at once."""

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from petx import reference
from petx._checks import check_finite, check_shape, refuse_type
from petx.functional._autograd import Differentiable, dtypes_of, wants_gradient
from petx.functional._operation import (
    Operation,
    as_leaves,
    cast,
    copied,
    grads_by,
    is_vmapped,
    narrow_bits,
    needed_bits,
    operands,
)
from petx.functional._threshold import THRESHOLDS, check_threshold

__all__ = ["cp_reconstruct"]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def cp_reconstruct(
    weights: Iterable[Tensor],
    u: Tensor,
    v: Tensor,
    cores: Tensor,
    threshold: Tensor | None = None,
    *,
    gate: str = "none",
    temperature: float = 1.0,
    scale: float = 1.0,
) -> tuple[Tensor, ...]:
    r"""``W'_k = W_k + gate(scale · V M_kᵀ U)`` entry by entry, for K frozen weights (PETAL, arXiv 2312.12458).

    The update's low-rank form is :func:`mode_update`; this one is for merging, and for a gate on the entries of ΔW.

    Args:
        weights: K tensors ``[d_out, d_in]`` of one dtype, the compute and output dtype.
        u: ``[R, d_in]``. v: ``[d_out, R]``. cores: ``[K, R, R]``, or their diagonals ``[K, R]``.
        threshold: Γ, ``[1]`` or ``[K]``, one for each weight; None with ``gate="none"``.
        gate: ``"none"``; ``"soft"``, sign(w) max(\|w\| - Γ, 0); ``"sigmoid"``, w σ((\|w\| - Γ) / temperature); or
            ``"hard"``, w where \|w\| > Γ, with the gradient passed straight through to w and the soft gate's to Γ.
        temperature: of the sigmoid, positive. scale: a constant factor of the update.

    Returns a tuple of K tensors ``[d_out, d_in]``. The sum is made in float32 (float64 for float64) and rounded once
    to the weights' dtype: in bfloat16 an update below 2⁻⁹ of its weight is lost, so merge in float32 if that
    matters. Gradients flow to weights, factors and threshold, in their own dtypes. Not twice differentiable.

    A call with ``-scale`` takes the update out again: the update is the same to the bit with its sign turned, so two
    roundings remain and \|W'' - W\| ≤ 2⁻²⁴ (\|W'\| + \|W''\|) in float32. Keep W if it must come back exactly.
    All weights go through one launch (on a GPU, one for every 240), which reads and writes each once; the backward
    recomputes ΔW tile by tile and stores nothing of its size, but for a gated ΔW's gradient on a GPU, 64 MB at a time.
    On a CPU the soft and the hard gate spare it that: the forward keeps two bits for each entry, its side of the
    threshold. Weights that are not contiguous are copied first. Autocast changes nothing here.

    Raises ValueError naming the argument, what came and what was wanted.
    """
    weights = check(weights, u, v, cores, threshold, gate, temperature, scale)
    factors = (u, v, cores, threshold)
    if OPERATION.runs_reference(weights[0], cores):
        factors = tuple(cast(t, weights[0].dtype) for t in factors)
        with torch.autocast(weights[0].device.type, enabled=False):
            return reference.cp_reconstruct(weights, *factors, gate=gate, temperature=temperature, scale=float(scale))
    options = (THRESHOLDS.index(gate), float(temperature), float(scale))
    keep = _keeps_sides(weights[0], factors, gate)
    leaves = (*factors, *weights)
    return _CPReconstruct.call(leaves, keep, *options, *factors, *(w.contiguous() for w in weights))[1:]


def _keeps_sides(weight: Tensor, factors: Sequence[Tensor | None], gate: str) -> bool:
    """Whether the forward keeps the two bits for each entry that the backward needs of ΔW: a sixteenth of a float32
    weight, for one of four GEMMs."""
    if gate not in ("soft", "hard") or not weight.is_cpu or torch.compiler.is_compiling():
        return False
    return wants_gradient(factors)


def check(
    weights: Any, u: Any, v: Any, cores: Any, threshold: Any, gate: Any, temperature: Any, scale: Any
) -> tuple[Tensor, ...]:
    """Raise ValueError if an argument does not fit the others; returns the weights as a tuple."""
    if not isinstance(weights, Iterable) or isinstance(weights, str | Tensor):
        refuse_type("cp_reconstruct", "weights", "tensors [d_out, d_in]", weights)
    weights = tuple(weights)
    if not weights:
        raise ValueError("cp_reconstruct: weights must be at least one tensor [d_out, d_in], got none")
    first = weights[0]
    check_shape("cp_reconstruct", "weights[0]", first, [-1, -1])
    if first.dtype not in DTYPES:
        known = ", ".join(map(str, DTYPES))
        raise ValueError(f"cp_reconstruct: weights[0] must have one of the dtypes {known}, got {first.dtype}")
    for k, weight in enumerate(weights):
        check_shape("cp_reconstruct", f"weights[{k}]", weight, list(first.shape), like=first)
        if weight.dtype != first.dtype:
            raise ValueError(
                f"cp_reconstruct: weights[{k}] must have the first's dtype {first.dtype}, got {weight.dtype}"
            )
    if not isinstance(cores, Tensor):
        refuse_type("cp_reconstruct", "cores", "[K, R, R] or [K, R]", cores)
    if cores.dim() not in (2, 3) or cores.shape[0] != len(weights) or cores.shape[-1] < 1:
        wanted = f"[{len(weights)}, R, R] or [{len(weights)}, R]"
        raise ValueError(f"cp_reconstruct: cores must be {wanted}, one for each weight, got {list(cores.shape)}")
    rank = cores.shape[-1]
    check_shape("cp_reconstruct", "cores", cores, [len(weights), *[rank] * (cores.dim() - 1)], like=first)
    check_shape("cp_reconstruct", "u", u, [rank, first.shape[1]], like=first)
    check_shape("cp_reconstruct", "v", v, [first.shape[0], rank], like=first)
    check_threshold("cp_reconstruct", threshold, gate, temperature, (len(weights),), first)
    check_finite("cp_reconstruct", scale=scale)
    return weights


class _CPReconstruct(Differentiable):
    """(sides, W'_0, ..., W'_(K-1)). Keeps the factors, and the sides or nothing: then the backward
    recomputes the updates, tile by tile."""

    LEAVES = slice(4, 8)

    @staticmethod
    def prepare(inputs: tuple[Any, ...], copies: Any) -> tuple[Any, ...]:
        return (*inputs[:4], *operands(inputs[4:8], inputs[8].dtype), *inputs[8:])

    @staticmethod
    def forward(
        keep: bool,
        gate: int,
        temperature: float,
        scale: float,
        u: Tensor,
        v: Tensor,
        cores: Tensor,
        threshold: Tensor | None,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        factors = operands((u, v, cores, threshold), weights[0].dtype)
        return tuple(torch.ops.petx.cp_reconstruct_fwd(weights, *factors, gate, temperature, scale, keep))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.options, ctx.dtypes = inputs[1:4], dtypes_of(inputs[4:8])
        ctx.save_for_backward(*inputs[4:8], output[0])
        ctx.mark_non_differentiable(output[0])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: None, *douts: Tensor | None) -> tuple[Tensor | None, ...]:
        (*factors, sides), needs = ctx.saved_tensors, ctx.needs_input_grad
        given = {k: dout for k, dout in enumerate(douts) if dout is not None}
        grads: list[Tensor | None] = [None] * 4
        if given and any(needs[4:8]):
            grads = _factor_grads(list(given.values()), list(given), factors, sides, needs[4:8], ctx)
        return (*[None] * 4, *grads, *(d if n else None for d, n in zip(douts, needs[8:], strict=False)))


def _factor_grads(
    douts: list[Tensor], used: list[int], factors: list[Any], sides: Tensor, needs: Sequence[bool], ctx: Any
) -> list[Tensor | None]:
    """Gradients of the factors in their own dtypes, from those of the results that are ``used``."""
    if is_vmapped(douts):
        return copied(_batched_grads(dict(zip(used, douts, strict=True)), factors, needs, ctx), ctx.dtypes)
    made: list[Any] = operands(factors, douts[0].dtype)
    u, v, cores, threshold = made
    count, each = cores.shape[0], threshold is not None and threshold.shape[0] > 1
    partly = len(used) < count
    if partly:
        cores, threshold = cores[used], threshold[used] if each else threshold
        sides = sides[used] if len(sides) else sides
    asked = needed_bits(needs), narrow_bits(ctx.dtypes, douts[0].dtype)
    douts = [d.contiguous() for d in douts]
    found = torch.ops.petx.cp_reconstruct_bwd(douts, u, v, cores, threshold, sides, *asked, *ctx.options)
    grads = as_leaves(found, ctx.dtypes, needs)
    if partly:  # what leads to no result has no gradient
        for i, alone in ((2, True), (3, each)):
            grad = grads[i]
            if grad is not None and alone:
                whole = torch.zeros_like(factors[i], dtype=ctx.dtypes[i])
                grads[i] = whole.index_put_((torch.tensor(used, device=u.device),), grad)
    return grads


def _batched_grads(
    given: dict[int, Tensor], factors: list[Any], needs: Sequence[bool], ctx: Any
) -> list[Tensor | None]:
    gate, temperature, scale = ctx.options
    shape, like = (factors[1].shape[0], factors[0].shape[1]), next(iter(given.values()))
    weights = [torch.zeros(shape, dtype=like.dtype, device=like.device)] * factors[2].shape[0]  # not read by a gradient

    def definition(*leaves: Any) -> tuple[Tensor, ...]:
        options: dict[str, Any] = dict(gate=THRESHOLDS[gate], temperature=temperature, scale=scale)
        return reference.cp_reconstruct(weights, *leaves, **options)

    return grads_by(definition, factors, needs, given)


def _shapes(given: SimpleNamespace) -> list[Tensor]:
    """The sides, and the K weights."""
    weights = given.weights
    d_out, d_in = weights[0].shape
    sides = weights[0].new_empty(len(weights) if given.keep else 0, d_out, (d_in + 3) // 4, dtype=torch.uint8)
    return [sides, *(torch.empty_like(w, memory_format=torch.contiguous_format) for w in weights)]


OPERATION = Operation("cp_reconstruct", ("u", "v", "cores", "threshold"), rank_dim=-1, shapes=_shapes)
