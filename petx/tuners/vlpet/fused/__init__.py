"""Encoder layers whose adapter sites run with dropout, residual connection and norm in one operation.

A file here writes the forward pass of one kind of host layer over that layer's own modules, as a subclass of the
host's class. :func:`fuse` gives a layer that class for as long as an adapter sits in it, if the layer is exactly what
the file was written for; otherwise the layer stays as it is, its sites run alone, and :func:`obstacle` says why.
Parameters, module names and checkpoints are the same both ways.
"""

import functools
import importlib
import inspect
import pkgutil
from typing import Any

import torch
from torch import nn

from petx.functional._operation import autocasts
from petx.tuners.vlpet.fused.layer import FusedLayer

__all__ = ["FusedLayer", "fuse", "fused_class", "obstacle", "obstacle_now", "separate"]


@functools.cache
def _kinds() -> tuple[type[FusedLayer], ...]:
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    found = {kind for module in modules for kind in vars(module).values() if isinstance(kind, type)}
    return tuple(kind for kind in found if issubclass(kind, FusedLayer) and kind is not FusedLayer)


def fused_class(layer: nn.Module) -> type[FusedLayer] | None:
    """The :class:`FusedLayer` written for ``layer``, a module of a host, or None."""
    return next((kind for kind in _kinds() if isinstance(layer, kind.host)), None)


def obstacle(layer: nn.Module) -> str | None:
    """Why ``layer`` cannot run fused, in words, or None if it can (or does)."""
    kind = fused_class(layer)
    if kind is None:
        return f"no fused form of {type(layer).__name__} is known"
    if type(layer) not in (kind, kind.host):
        return f"{type(layer).__name__} is a subclass of {kind.host.__name__}, whose forward may differ"
    if "forward" in vars(layer):
        return f"the forward of this {kind.host.__name__} was replaced"
    host: Any = kind.host
    forward = inspect.unwrap(host.forward)
    if forward.__module__ != kind.host.__module__:
        return f"{kind.host.__name__}.forward was replaced by {forward.__module__}.{forward.__qualname__}"
    if tuple(inspect.signature(forward).parameters)[: len(kind.arguments)] != kind.arguments:
        return f"this transformers' {kind.host.__name__}.forward takes other arguments"
    reads = {name for name in forward.__code__.co_names if hasattr(layer, name)}
    if reads != kind.reads:
        differing = ", ".join(sorted(reads ^ kind.reads))
        return f"this transformers' {kind.host.__name__}.forward differs in its use of {differing}"
    return None


def obstacle_now(layer: nn.Module) -> str | None:
    """Why ``layer``, which is fused, would run the host's own steps in a pass here and now, or None."""
    for name, parameter in layer.named_parameters():
        dtype = parameter.dtype
        narrow = dtype.is_floating_point and dtype != torch.float32
        if ".vlpet_adapter." not in name and narrow and autocasts(parameter.device):
            return f"under autocast a residual stream in {dtype} changes its dtype on the way"
    return None


def fuse(layer: nn.Module) -> str | None:
    """Let ``layer`` run fused if it can; returns :func:`obstacle`."""
    reason, kind = obstacle(layer), fused_class(layer)
    if reason is None and kind is not None:
        layer.__class__ = kind
    return reason


def separate(layer: nn.Module) -> None:
    """Give ``layer`` its host's class back."""
    if isinstance(layer, FusedLayer):
        layer.__class__ = layer.host
