"""Loads the compiled library ``petx._C``, whose import registers ``torch.ops.petx.*``, and answers what it holds."""

import importlib
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch  # its libraries must be loaded before petx._C

from petx.certify import choice

_load_error: ImportError | None = None
_C: Any = None
if os.environ.get("PETX_DISABLE_KERNELS", "0") != "1":
    try:
        _C = importlib.import_module("petx._C")
    except ImportError as error:  # not built, or built for another torch or Python
        _load_error = error


_DEVICE_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
_fused: set[tuple[str, str]] = set()  # (operation, device type) with both directions compiled
_stems: list[str] = []  # what :func:`register` was called with


def compiled(stem: str, device_type: str) -> bool:
    """Whether the library has both directions of operation ``stem`` for ``device_type``."""
    return (stem, device_type) in _fused


def known() -> list[str]:
    """The operations that have a kernel, sorted."""
    return sorted({stem for stem, _ in _fused})


def has_kernel(stem: str, device_type: str) -> bool:
    """Whether operation ``stem`` runs compiled on ``device_type``; else callers use :mod:`petx.reference`.

    On a GPU: whether the current card's certificate has it right in every dtype; :func:`takes` knows one call's.
    """
    if device_type != "cuda" or not compiled(stem, "cuda"):
        return compiled(stem, device_type)
    return choice.takes_all(stem)


def takes(stem: str, tensor: torch.Tensor, rank: int | None = None) -> bool:
    """Whether a call runs compiled whose first tensor is ``tensor``, in the dtype in which it computes.

    On a GPU the card's certificate decides, for this dtype and shape; ``rank`` is the bottleneck's, if the caller knows
    it. (A tensor's device is an object that torch creates at every access, so it is not asked for.)
    """
    if tensor.is_cpu:
        return (stem, "cpu") in _fused
    return tensor.is_cuda and (stem, "cuda") in _fused and choice.takes(stem, tensor, rank)


def why_absent(stem: str, device_type: str) -> str | None:
    """Why operation ``stem`` does not run compiled on ``device_type`` (the current GPU) here, or None if it does; of a
    kernel that is wrong in some dtypes, in which.

    Certifies nothing.
    """
    if device_type != "cuda" and compiled(stem, device_type):
        return None
    if _C is None:
        if _load_error is None:
            return "PETX_DISABLE_KERNELS=1 is set"
        return f"petx._C cannot be loaded: {_load_error}"
    if device_type not in _DEVICE_KEYS:
        return f"petx has no kernels for device type {device_type!r}"
    if stem not in _C.build_info()["operations"]:
        return f"this build has no operation {stem!r}"
    if device_type == "cuda" and _C.build_info()["cuda_mode"] == "absent":
        return f"built without CUDA: {_C.build_info()['cuda_absent_reason']}"
    if compiled(stem, "cuda"):
        return choice.why_not(stem)
    missing = [direction for direction in ("fwd", "bwd") if not _registered(f"{stem}_{direction}", device_type)]
    return f"no {_DEVICE_KEYS[device_type]} kernel of {stem}_{' and '.join(missing)} yet"


def stems() -> list[str]:
    """The operations that :mod:`petx.functional` has, compiled or not, sorted."""
    return sorted(_stems)


def register(
    stem: str, forward_shapes: Callable[[SimpleNamespace], Any], backward_shapes: Callable[[SimpleNamespace], Any]
) -> None:
    """Take up operation ``stem``: which devices run it, and its results' shapes for torch.compile and fake tensors.

    The shape functions get the operator's arguments by the names that its schema gives them.
    """
    _stems.append(stem)
    if _C is None or stem not in _C.build_info()["operations"]:
        return
    for direction, shapes in (("fwd", forward_shapes), ("bwd", backward_shapes)):
        torch.library.register_fake(f"petx::{stem}_{direction}", _by_name(stem, direction, shapes))
    for device_type in _DEVICE_KEYS:
        if _registered(f"{stem}_fwd", device_type) and _registered(f"{stem}_bwd", device_type):
            _fused.add((stem, device_type))


def _by_name(stem: str, direction: str, shapes: Callable[[SimpleNamespace], Any]) -> Callable[..., Any]:
    """The shape function as torch calls it: with positions, and tensors of one device. If one of them is on the device
    meta, torch takes the shape function for the kernel."""
    schema = getattr(torch.ops.petx, f"{stem}_{direction}").default._schema
    names = [argument.name for argument in schema.arguments]

    def checked(*args: Any) -> Any:
        devices = {t.device for t in torch.utils._pytree.tree_leaves(args) if isinstance(t, torch.Tensor)}
        if len(devices) > 1:
            raise RuntimeError(f"{stem}: tensors must be on one device, got {', '.join(sorted(map(str, devices)))}")
        return shapes(SimpleNamespace(**dict(zip(names, args, strict=True))))

    return checked


def _registered(name: str, device_type: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"petx::{name}", _DEVICE_KEYS[device_type])
