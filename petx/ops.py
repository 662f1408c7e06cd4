"""Loads the compiled library ``petx._C``, whose import registers ``torch.ops.petx.*``, and answers what it holds."""

import importlib
import os

import torch  # its libraries must be loaded before petx._C

_load_error = None
_C = None
if os.environ.get("PETX_DISABLE_KERNELS", "0") != "1":
    try:
        _C = importlib.import_module("petx._C")
    except ImportError as error:  # not built, or built for another torch or Python
        _load_error = error


_DEVICE_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
# No card has run or measured the CUDA kernels yet: torch's own products stay the default on a GPU until one has.
_use_cuda_kernels = os.environ.get("PETX_CUDA_KERNELS", "0") == "1"
_fused = set()  # (operation, device type) with both directions compiled


def has_kernel(stem, device_type):
    """Whether operation ``stem`` runs compiled on ``device_type``; else callers use :mod:`petx.reference`."""
    return (stem, device_type) in _fused


def takes(stem, tensor):
    """The same of a tensor's device, which is an object that torch makes anew for every look at it."""
    if tensor.is_cpu:
        return (stem, "cpu") in _fused
    return tensor.is_cuda and (stem, "cuda") in _fused


def why_absent(stem, device_type):
    """Why operation ``stem`` has no compiled kernel for ``device_type`` here, or None where it has one."""
    if has_kernel(stem, device_type):
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
    if device_type == "cuda" and not _use_cuda_kernels:
        return "the CUDA kernels are not tuned yet, and used only where PETX_CUDA_KERNELS=1 is set"
    missing = [direction for direction in ("fwd", "bwd") if not _registered(f"{stem}_{direction}", device_type)]
    return f"no {_DEVICE_KEYS[device_type]} kernel of {stem}_{' and '.join(missing)} yet"


def register(stem, fwd_fake, bwd_fake):
    """Take up operation ``stem``: shape functions for torch.compile and fake tensors, and which devices run it."""
    if _C is None or stem not in _C.build_info()["operations"]:
        return
    torch.library.register_fake(f"petx::{stem}_fwd", _on_one_device(stem, fwd_fake))
    torch.library.register_fake(f"petx::{stem}_bwd", _on_one_device(stem, bwd_fake))
    for device_type in _DEVICE_KEYS:
        if device_type == "cuda" and not _use_cuda_kernels:
            continue
        if _registered(f"{stem}_fwd", device_type) and _registered(f"{stem}_bwd", device_type):
            _fused.add((stem, device_type))


def _on_one_device(stem, fake):
    """``fake`` for tensors of one device: with one of them on the device meta, torch takes it for the kernel."""

    def checked(*args):
        devices = {t.device for t in torch.utils._pytree.tree_leaves(args) if isinstance(t, torch.Tensor)}
        if len(devices) > 1:
            raise RuntimeError(f"{stem}: tensors must be on one device, got {', '.join(sorted(map(str, devices)))}")
        return fake(*args)

    return checked


def _registered(name, device_type):
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"petx::{name}", _DEVICE_KEYS[device_type])
