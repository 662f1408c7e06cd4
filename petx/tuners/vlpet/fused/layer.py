"""What fused layers share: whether a call may run fused, and the end of a sub-layer in one operation."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from peft.utils import ModulesToSaveWrapper
from torch import nn
from torch.nn.modules.module import _has_any_global_hook as _hooks_of_all

from petx.functional._operation import autocasts
from petx.nn import Tail
from petx.tuners.vlpet.layer import EncoderSite

__all__ = ["FusedLayer", "end_of_sublayer", "is_watched", "running"]


class FusedLayer(nn.Module):
    """Mixin before a host's layer class; the subclass writes ``fused_forward`` with the host's arguments."""

    host: ClassVar[type]
    """The host's class, whose forward ``fused_forward`` equals up to rounding."""
    sites: ClassVar[tuple[str, ...]]
    """Paths in the layer of the linears that may be adapter sites."""
    watched: ClassVar[tuple[str, ...]]
    """Paths of the modules whose output is another one in a fused pass: hooks on them want the unfused one."""
    arguments: ClassVar[tuple[str, ...]]
    """The first parameters of the host's forward."""
    reads: ClassVar[frozenset[str]]
    """Attributes of the layer that the host's forward reads: one more or less, and the host has changed."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if any(is_watched(_at(self, path)) for path in (*self.watched, *self.sites)):
            return super().forward(*args, **kwargs)
        self._let_sites_adapt(False)
        try:
            return self.fused_forward(*args, **kwargs)
        finally:
            self._let_sites_adapt(True)

    def fused_forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def _let_sites_adapt(self, alone: bool) -> None:
        """Whether the layer's sites apply their adapter themselves, or leave it to :func:`end_of_sublayer`."""
        for path in self.sites:
            site = _at(self, path)
            if isinstance(site, EncoderSite):
                site.adapts_itself = alone


def _at(module: Any, path: str) -> Any:
    """The submodule at ``path``, in every pass: ``get_submodule`` takes three times as long to check each step."""
    for name in path.split("."):
        module = getattr(module, name)
    return module


def end_of_sublayer(
    site: nn.Module,
    h: torch.Tensor,
    x: torch.Tensor,
    dropout: float | nn.Module,
    norm: nn.Module | None,
    training: bool,
) -> torch.Tensor:
    """``norm(x + dropout(s · G ⊙ (h + Δh)))``, ``[..., L, d]``: in one operation if everything in it is plain.

    Args:
        site: the sub-layer's last linear, an :class:`EncoderSite` or a linear without adapter.
        h: what it returned, without its adapter. x: input of the residual connection.
        dropout: the host's probability, or its module. norm: the host's norm, or None if none follows.
        training: whether the layer is in training mode.
    """
    adapter, mask = site.take_up() if isinstance(site, EncoderSite) else (None, None)
    if adapter is not None:
        tail = _tail(dropout, norm, training) if _plain(adapter, h, x) else None
        if tail is not None:
            return adapter(h, x, mask, tail=tail)
        h = adapter(h, x.to(h.dtype), mask)
    h = x + (dropout(h) if isinstance(dropout, nn.Module) else F.dropout(h, dropout, training))
    return h if norm is None else norm(h)


def _plain(adapter: nn.Module, h: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether the operation may compute the tail: x in h's dtype, or under autocast in float32, as the host's own sum
    and norm would be."""
    autocast = autocasts(h.device)
    return "forward" not in vars(adapter) and (x.dtype == torch.float32 if autocast else h.dtype == x.dtype)


def _tail(dropout: float | nn.Module, norm: nn.Module | None, training: bool) -> Tail | None:
    """The operation's arguments for a host's dropout and norm, or None if one of them has to be called."""
    if isinstance(dropout, nn.Module):
        if type(dropout) is not nn.Dropout or is_watched(dropout):
            return None
        rate, training = dropout.p, dropout.training
    else:
        rate = dropout
    p = rate if training else 0.0
    if p >= 1:
        return None  # torch's dropout of everything
    if norm is None:
        return Tail(p)
    norm, wrapper = running(norm), norm
    if type(norm) is not nn.LayerNorm or norm.weight is None or is_watched(norm) or is_watched(wrapper):
        return None
    return Tail(p, "layer", norm.weight, norm.bias, norm.eps)


def running(module: nn.Module) -> nn.Module:
    """What a call of ``module`` runs: of PEFT's wrapper the copy that is trained, or the frozen module."""
    if not isinstance(module, ModulesToSaveWrapper):
        return module
    active = module.active_adapters
    if module.disable_adapters or not active or any(name not in module.modules_to_save for name in active):
        return module.original_module
    return module.modules_to_save[active[0]]


def is_watched(module: nn.Module) -> bool:
    """Whether a hook on ``module``, or one of all modules, wants to see or change what goes through it."""
    kinds = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return any(not _leaves_alone(hook) for hooks in kinds for hook in hooks.values()) or _hooks_of_all()


def _leaves_alone(hook: object) -> bool:
    """Whether ``hook`` is a site's tap, or transformers' recorder of attention weights: neither reads the output."""
    recorder = getattr(hook, "__module__", None) == "transformers.utils.output_capturing"
    return recorder or isinstance(getattr(hook, "__self__", None), EncoderSite)
