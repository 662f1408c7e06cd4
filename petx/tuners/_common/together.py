"""Frozen linears of one input as one GEMM: their weights lie one after the other in memory.

No weight is copied to be kept: the linears' own parameters become parts of the whole, so whatever is written into one
(loading, an optimizer, ``.data``) is written into the whole, and what is put in its place is seen by where it lies.
Each part has a storage of its own over its piece of that memory, for what saves, shares or counts weights by storage.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooks_of_all
from torch.utils.dlpack import from_dlpack, to_dlpack

from petx.tuners._common.layer import why_packed

__all__ = ["Together", "distributed", "has_hooks", "why_apart"]


def has_hooks(module: nn.Module) -> bool:
    """Whether any hook sees what goes through ``module``, one of all modules too."""
    kinds = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return any(kinds) or hooks_of_all._has_any_global_hook()


def why_apart(linears: Sequence[Any]) -> str | None:
    """Why ``linears``, modules, have to be called one by one, in words; None if one GEMM may serve for all, once
    :meth:`Together.lay` has been called."""
    if any(type(linear) is not nn.Linear or "forward" in vars(linear) for linear in linears):
        return "a frozen projection is not torch's own linear layer"
    if any(has_hooks(linear) for linear in linears):
        return "hooks listen to a frozen projection"
    first = linears[0]
    if any((linear.bias is None) != (first.bias is None) for linear in linears):
        return "some of the frozen projections have a bias and some have none"
    for name in ("weight",) if first.bias is None else ("weight", "bias"):
        tensors = [getattr(linear, name) for linear in linears]
        if any(name not in linear._parameters or type(linear._parameters[name]) is torch.Tensor for linear in linears):
            return "the frozen weights are handed in for this pass (functional_call, FSDP)"
        if any(tensor.requires_grad for tensor in tensors):
            return "a projection's own weight or bias is trained"
        if any(why_packed(tensor) for tensor in tensors):
            return "the frozen weights are quantised, sharded or of a type of their own"
        if len({(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors}) > 1:
            return "the frozen projections differ in size, dtype or device"
        if tensors[0].is_meta:
            return "the frozen weights have no memory yet"
        if tensors[0].device.type not in ("cpu", "cuda"):
            return "the frozen weights are neither on a CPU nor on a GPU of CUDA"
        if reason := _why_bound(tensors):
            return reason
    return None


class Together:
    """The memory in which linears' weights lie one after the other, as one weight and one bias."""

    def __init__(self) -> None:
        self._whole: dict[str, torch.Tensor | None] = {}

    def weights(self, linears: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """Weight ``[K d_out, d_in]`` and bias ``[K d_out]`` or None of ``linears``; None if they have a reason to be
        apart or do not lie together. Runs in every pass, :func:`why_apart` only after it said no."""
        for linear in linears:
            if type(linear) is not nn.Linear or "forward" in vars(linear) or has_hooks(linear):
                return None
        weight, bias = (self._whole.get(name) for name in ("weight", "bias"))
        if weight is None or not _are_parts(linears, "weight", weight) or not _are_parts(linears, "bias", bias):
            return None
        return weight, bias

    @torch.inference_mode(False)
    @torch.no_grad()
    def lay(self, linears: Sequence[Any]) -> None:
        """Move the weights of ``linears``, which have no reason to be apart, into one memory, and the biases."""
        for name in ("weight", "bias"):
            if _are_parts(linears, name, self._whole.get(name)):
                continue
            tensors = [getattr(linear, name) for linear in linears]
            whole = None if tensors[0] is None else torch.cat([tensor.detach() for tensor in tensors])
            if whole is not None:
                for tensor, part in zip(tensors, whole.split(len(tensors[0])), strict=True):
                    tensor.data = _of_its_own(part)
            self._whole[name] = whole

    def __getstate__(self) -> dict[str, Any]:
        return {"_whole": {}}  # a copy's weights lie elsewhere


def _are_parts(linears: Sequence[Any], name: str, whole: torch.Tensor | None) -> bool:
    """Whether the parameters ``name`` of ``linears`` are frozen, and ``whole`` is what lies there; None: there are
    none."""
    begin = 0 if whole is None else whole.data_ptr()
    for linear in linears:
        tensor = linear._parameters.get(name)
        if whole is None or tensor is None:
            if whole is not None or tensor is not None or hasattr(linear, name) and getattr(linear, name) is not None:
                return False
            continue
        if (
            type(tensor) is not nn.Parameter
            or tensor.requires_grad
            or tensor.is_meta
            or tensor.dtype != whole.dtype
            or tensor.numel() * len(linears) != whole.numel()
            or tensor.shape[1:] != whole.shape[1:]
            or not tensor.is_contiguous()
            or tensor.data_ptr() != begin
            or tensor.device != whole.device
        ):
            return False
        begin += tensor.nbytes
    return True


def _of_its_own(part: torch.Tensor) -> torch.Tensor:
    """``part``, contiguous, of the same memory, which it keeps, and with a storage that begins and ends as it does."""
    raw = part.reshape(-1).view(torch.uint8)
    return from_dlpack(to_dlpack(raw)).view(part.dtype).view(part.shape)


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
