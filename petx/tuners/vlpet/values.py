"""The decoder's value sites run as one: every layer's adapter in one operation on the encoder output."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from petx import functional
from petx.functional._operation import autocasts
from petx.nn import ValueAdapter
from petx.tuners._common.sharded import is_managed
from petx.tuners._common.together import Together, distributed, why_apart
from petx.tuners.vlpet.fused.layer import is_watched
from petx.tuners.vlpet.layer import ValueSite

__all__ = ["ValueGroup", "decoder_of"]

_ALIKE = ("rank", "activation", "scale")


def decoder_of(model: nn.Module, paths: list[str]) -> nn.Module | None:
    """The module whose forward runs all the modules at ``paths``, or None if that is no stack of layers."""
    common = os.path.commonprefix([path.split(".") for path in paths])
    while common and isinstance(model.get_submodule(".".join(common)), nn.ModuleList):
        common = common[:-1]
    return model.get_submodule(".".join(common)) if common else None


class ValueGroup:
    """The value sites of a decoder, whose values V_k = v_k + up_k(gelu(down_k(e))) are computed together.

    The first site of a pass computes all of them, by :func:`petx.functional.value_adapters`, and the others take
    theirs; what nobody took is let go at the end of the decoder's pass. A pass in which they cannot run together,
    because of :meth:`obstacle`, runs them one by one.

    Args:
        decoder: the module whose forward runs the sites in turn.
        sites: two or more :class:`petx.tuners.vlpet.layer.ValueSite`, in the order of the layers.
    """

    def __init__(self, decoder: nn.Module, sites: list[ValueSite]) -> None:
        self.decoder, self.sites = decoder, sites
        self._values: dict[int, torch.Tensor] = {}
        self._source: torch.Tensor | None = None
        self._together = Together()
        for index, site in enumerate(sites):
            site.group, site.index = self, index
        self.lay_together()
        # A bound method, so that deepcopy of the whole model copies the connection too.
        self._hook = decoder.register_forward_hook(self._release, always_call=True)

    def disconnect(self) -> None:
        self._hook.remove()
        for site in self.sites:
            site.group = None

    def _release(self, *_: Any) -> None:
        self._values, self._source = {}, None

    def lay_together(self) -> None:
        """Let the frozen weights lie in one memory, if they may."""
        linears = [site.base_layer for site in self.sites]
        if why_apart(linears) is None:
            self._together.lay(linears)

    def values(self, site: ValueSite, e: torch.Tensor) -> torch.Tensor | None:
        """V of ``site`` ``[..., L_e, d]`` for the encoder output ``e [..., L_e, d_e]``; None if it has to run alone."""
        if site.index == 0:
            self._release()
            if self.obstacle(e) is None:
                self._source, self._values = e, dict(enumerate(self._all(e)))
        return self._values.pop(site.index, None) if self._source is e else None

    def obstacle(self, e: torch.Tensor | None = None) -> str | None:
        """Why the sites cannot run together in a pass on ``e`` (None: in any), in words, or None if they can."""
        adapters: list[Any] = [site.running_adapter() for site in self.sites]
        linears = [site.get_base_layer() for site in self.sites]
        if any(type(adapter) is not ValueAdapter or "forward" in vars(adapter) for adapter in adapters):
            return "not every layer has an adapter that is active, and petx's own"
        first, linear = adapters[0], linears[0]
        if any(a.granularity != "none" or a.modification != "linear" or a.blocks != 1 for a in adapters):
            return "they have a gate, phm weights or a block-diagonal projection"
        if any(getattr(a, name) != getattr(first, name) for a in adapters for name in _ALIKE):
            return "their rank, activation or scale differ"
        if any(len({part.bias is None for part in parts}) > 1 for parts in _projections(adapters, linears)):
            return "some have a bias and some have none"
        if any(type(other) is not nn.Linear or other.weight.requires_grad for other in linears):
            return "the value projections are not frozen linears of torch"
        places = {(other.weight.shape, other.weight.dtype, other.weight.device) for other in linears}
        if len(places) > 1:
            return "the value projections differ in size, dtype or device"
        if any(is_managed(site) for site in self.sites):
            return "FSDP holds each layer's weights for that layer alone"
        if any(is_watched(module) for module in (*self.sites, *adapters, *linears)):
            return "hooks listen to them"
        if self.decoder.training and getattr(self.decoder, "layerdrop", None):
            return "the decoder drops whole layers in training"
        if self.decoder.training and any(getattr(m, "gradient_checkpointing", False) for m in self.decoder.modules()):
            return "every layer is recomputed for itself under gradient checkpointing"
        if torch.compiler.is_compiling():
            return "torch.compile sees one layer at a time"
        weight = linear.weight
        if e is not None and e.dtype != weight.dtype and not autocasts(weight.device):
            return "the encoder output has another dtype than the value projections"
        return None

    def _all(self, e: torch.Tensor) -> tuple[torch.Tensor, ...]:
        adapters: list[Any] = [site.running_adapter() for site in self.sites]
        down, up = ([getattr(adapter, part) for adapter in adapters] for part in ("down", "up"))
        values = functional.value_adapters(
            e,
            self._frozen(e),
            *(_stack(down, "weight"), _stack(down, "bias"), _stack(up, "weight"), _stack(up, "bias")),
            activation=adapters[0].activation,
            scale=adapters[0].scale,
        )
        return values.unbind(-2)  # whose backward is one stack

    def _frozen(self, e: torch.Tensor) -> torch.Tensor:
        """The frozen projections of ``e``, ``[..., L_e, layers, d]``: as one GEMM if their weights may lie together."""
        linears = [site.base_layer for site in self.sites]
        found = self._together.weights(linears)
        if found is None and not distributed():
            self.lay_together()
            found = self._together.weights(linears)
        if found is None:
            return torch.stack([linear(e) for linear in linears], -2)
        return F.linear(e, *found).unflatten(-1, (len(linears), -1))

    def __getstate__(self) -> dict[str, Any]:
        # A running pass does not belong to what is copied or saved.
        return self.__dict__ | {"_values": {}, "_source": None}


def _projections(adapters: list[Any], linears: list[Any]) -> tuple[list[Any], ...]:
    return [a.down for a in adapters], [a.up for a in adapters], linears


def _stack(modules: list[Any], name: str) -> Any:
    tensors = [getattr(module, name) for module in modules]
    return None if tensors[0] is None else torch.stack(tensors)
