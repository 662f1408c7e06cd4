"""Frozen linears of one input as one GEMM: their weights lie one after the other in one storage.

No weight is copied to be kept: the linears' own parameters become slices of the whole, so whatever is written into one
(loading, an optimizer, ``.data``) is written into the whole, and what is put in its place is seen by where it lies.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooks_of_all

from petx.tuners._common.layer import why_packed

__all__ = ["as_one", "distributed", "lay_together", "listened_to", "why_apart"]


def listened_to(module: nn.Module) -> bool:
    """Whether a hook wants to see or change what goes through ``module``."""
    kinds = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return any(kinds) or hooks_of_all._has_any_global_hook()


def why_apart(linears: Sequence[Any]) -> str | None:
    """Why ``linears``, modules, have to be called one by one, in words; None if one GEMM may serve for all, once
    :func:`lay_together` has been called."""
    if any(type(linear) is not nn.Linear or "forward" in vars(linear) for linear in linears):
        return "a frozen projection is not torch's own linear layer"
    if any(listened_to(linear) for linear in linears):
        return "hooks listen to a frozen projection"
    first = linears[0]
    if any((linear.bias is None) != (first.bias is None) for linear in linears):
        return "some of the frozen projections have a bias and some have none"
    for name in ("weight",) if first.bias is None else ("weight", "bias"):
        tensors = [getattr(linear, name) for linear in linears]
        if any(tensor.requires_grad for tensor in tensors):
            return "a projection's own weight or bias is trained"
        if any(why_packed(tensor) for tensor in tensors):
            return "the frozen weights are quantised, sharded or of a type of their own"
        if len({(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors}) > 1:
            return "the frozen projections differ in size, dtype or device"
        if tensors[0].is_meta:
            return "the frozen weights have no memory yet"
        if not _lie_together(tensors) and (reason := _why_bound(tensors)):
            return reason
    return None


def as_one(linears: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """Weight ``[K d_out, d_in]`` and bias ``[K d_out]`` or None of ``linears``; None if they have a reason to be apart
    or do not lie together. Runs in every pass, :func:`why_apart` only after it said no."""
    for linear in linears:
        if type(linear) is not nn.Linear or "forward" in vars(linear) or listened_to(linear):
            return None
    found: list[Any] = []
    for name in ("weight", "bias"):
        tensors = [linear._parameters[name] for linear in linears]
        first = tensors[0]
        if first is None and not any(tensor is not None for tensor in tensors):
            found.append(None)
            continue
        for tensor in tensors:
            if (
                type(tensor) is not nn.Parameter
                or tensor.requires_grad
                or tensor.is_meta
                or tensor.shape != first.shape
            ):
                return None
        if why_packed(first) or not _lie_together(tensors):
            return None
        found.append(first.detach().as_strided((len(tensors) * first.shape[0], *first.shape[1:]), first.stride()))
    return found[0], found[1]


@torch.inference_mode(False)
@torch.no_grad()
def lay_together(linears: Sequence[Any]) -> None:
    """Move the weights of ``linears``, which have no reason to be apart, into one storage, and the biases into one."""
    for name in ("weight", "bias"):
        tensors = [getattr(linear, name) for linear in linears]
        if tensors[0] is None or _lie_together(tensors):
            continue
        whole = torch.cat([tensor.detach() for tensor in tensors])
        for tensor, part in zip(tensors, whole.split(len(tensors[0])), strict=True):
            tensor.data = part


def _lie_together(tensors: Sequence[torch.Tensor]) -> bool:
    first = tensors[0]
    storage, begin, count = first.untyped_storage().data_ptr(), first.storage_offset(), first.numel()
    return all(
        tensor.untyped_storage().data_ptr() == storage
        and tensor.storage_offset() == begin + i * count
        and tensor.dtype == first.dtype
        and tensor.is_contiguous()
        for i, tensor in enumerate(tensors)
    )


def _why_bound(tensors: Sequence[torch.Tensor]) -> str | None:
    """Why ``tensors`` may not move into one storage: others count on where they lie."""
    own = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    whole = all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors)
    if len(own) < len(tensors) or not whole:
        return "the frozen weights share their memory with others (tied, or flattened by FSDP)"
    if any(tensor.is_inference() for tensor in tensors):
        return "the frozen weights were made in inference mode"
    if any(tensor.device.type == "cpu" and tensor.is_shared() for tensor in tensors):
        return "the frozen weights are shared between processes"
    return None


def distributed() -> bool:
    """Whether this process is one of several, whose wrappers (FSDP) own the weights' memory in a pass."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
