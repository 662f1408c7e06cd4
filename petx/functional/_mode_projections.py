"""The frozen projections of one input and PETAL's update beside them: one GEMM, one operator, one function.

Autograd would add up what each projection and the update say of the input's gradient, a pass over it each time. Here
all of them add into one tensor.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from petx.functional._autograd import dtypes_of, wants_gradient
from petx.functional._mode_update import OPERATION, batched_grads, update
from petx.functional._operation import autocast_dtype, cast, copied, is_vmapped, narrow_bits, needed_bits, operands


def projected_update(
    x: Tensor,
    projected: Tensor | None,
    u: Tensor | None,
    v: Tensor,
    cores: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dropout: float,
    shared_mask: bool,
    seed: Tensor | None,
    copies: tuple[Tensor | None, Tensor, Tensor] | None,
) -> tuple[Tensor, ...]:
    """``y_k = x W_kᵀ + b_k + drop_k(x Uᵀ) M_k Vᵀ`` for K frozen projections: K tensors ``[..., d_out]``.

    Args:
        x: ``[..., d_in]``. projected: ``x Uᵀ [..., R]``, or None if ``u [R, d_in]`` is given.
        v: ``[d_out, R]``. cores: ``[K, R, R]`` or ``[K, R]``.
        weight: ``[K d_out, d_in]``, the frozen W_k one after the other, and bias ``[K d_out]``; they get no gradient.
        dropout, shared_mask, seed, copies: as in :func:`petx.functional._mode_update.update`.
    """
    read = x if projected is None else projected
    plain = OPERATION.runs_reference(read, cores) or torch._C._are_functorch_transforms_active()
    if plain or torch.compiler.is_compiling() or not wants_gradient((x, projected, u, v, cores)):
        dtype = autocast_dtype(x)
        bases = F.linear(cast(x, dtype), cast(weight, dtype), cast(bias, dtype)).split(v.shape[0], -1)
        return update(read, u, v, cores, bases, dropout, shared_mask, seed, copies)
    if dropout == 0:
        seed = None
    elif seed is None:
        seed = torch.randint(2**62, (1,), dtype=torch.int64, device=x.device)
    return _ProjectedUpdate.apply(x, projected, u, v, cores, weight, bias, seed, float(dropout), shared_mask, copies)


class _ProjectedUpdate(torch.autograd.Function):
    """(y_0, ..., y_(K-1)). Keeps what the update keeps, and the frozen weight; the projections' results are let go."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        projected: Tensor | None,
        u: Tensor | None,
        v: Tensor,
        cores: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        seed: Tensor | None,
        dropout: float,
        shared_mask: bool,
        copies: Sequence[Tensor | None] | None,
    ) -> tuple[Tensor, ...]:
        dtype = autocast_dtype(x)
        ctx.dtypes, ctx.options = dtypes_of((x, projected, u, v, cores)), (dropout, shared_mask)
        x, weight = cast(x, dtype).contiguous(), cast(weight, dtype)
        read = x if projected is None else cast(projected, dtype).contiguous()
        factors = operands((u, v, cores) if copies is None else copies, dtype)
        bases = F.linear(x, weight, cast(bias, dtype)).split(v.shape[0], -1)
        hidden, *results = torch.ops.petx.mode_update_fwd(read, *factors, bases, seed, dropout, shared_mask)
        ctx.save_for_backward(read, *factors, seed, hidden, weight if ctx.needs_input_grad[0] else None)
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *douts: Tensor | None) -> tuple[Tensor | None, ...]:
        given = {k: dout for k, dout in enumerate(douts) if dout is not None}
        batched = is_vmapped(given.values())
        if not batched:
            given = {k: dout.contiguous() for k, dout in given.items()}
        if not given:
            return (None,) * 11
        read, *factors, seed, hidden, weight = ctx.saved_tensors
        x_needs, projected_needs, *others = ctx.needs_input_grad[:5]
        alone = ctx.dtypes[1] is None  # the update reads x itself
        needs = (x_needs if alone else projected_needs, *others)
        found: Sequence[Tensor | None] = (None,) * 4
        bits = needed_bits(needs)
        if bits and batched:
            found = batched_grads(given, (read, *factors), seed, needs, *ctx.options)
        elif bits:
            used = sum(1 << k for k in given)
            asked = bits, narrow_bits((None, *ctx.dtypes[2:]), read.dtype)
            found = torch.ops.petx.mode_update_bwd(
                list(given.values()), used, read, *factors, seed, hidden, *asked, *ctx.options
            )
        dread, *rest = (grad if need else None for grad, need in zip(found, needs, strict=True))
        dx = dread if alone else None
        if x_needs:
            # In the forward's dtype, though the backward be called under an autocast that the forward was not under.
            under = torch.is_autocast_enabled(read.device.type)
            with torch.autocast(read.device.type, enabled=False) if under else nullcontext():
                dx = _with_projections(dx, given, weight, factors[1].shape[0], read.shape[:-1], batched)
        grads = copied((dx, None if alone else dread, *rest), ctx.dtypes)
        return (*grads, *(None,) * 6)


def _with_projections(
    dx: Tensor | None, douts: dict[int, Tensor], weight: Tensor, width: int, rows: torch.Size, batched: bool
) -> Tensor | None:
    """``dx [*rows, d_in]``, or zeros if it is None, plus ``Σ_k dout_k W_k``; ``weight [K width, d_in]``."""
    shape = (*rows, weight.shape[1])
    dx = None if dx is None else dx.reshape(-1, shape[-1])
    for k, dout in douts.items():
        flat, own = dout.reshape(-1, width), weight[k * width : (k + 1) * width]
        if dx is None or batched:
            dx = flat @ own if dx is None else dx + flat @ own
        else:
            dx.addmm_(flat, own)  # the operator's own result, or the line above's
    return None if dx is None else dx.view(shape)
