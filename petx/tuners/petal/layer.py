"""The layer that takes the place of a frozen projection, and the groups in which projections are computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from petx.functional._mode_projections import projected_update
from petx.functional._mode_update import update
from petx.functional._operation import autocast_dtype, autocasts, cast
from petx.tuners._common.layer import AdapterLayer
from petx.tuners._common.sharded import in_shards, is_managed
from petx.tuners._common.together import Together, distributed, why_apart

if TYPE_CHECKING:
    from petx.tuners.petal.plan import Group
    from petx.tuners.petal.running import RunningTower

__all__ = ["PetalLayer", "ProjectionGroup"]


class PetalLayer(AdapterLayer):
    """A frozen linear with a mode vector for every adapter name; factors and core are its tower's.

    Args:
        base_layer: the frozen linear, ``[*, in_features] -> [*, out_features]``.
        group: the :class:`ProjectionGroup` it belongs to.
    """

    method = "PETAL"
    one_at_a_time = "the experts of two would not add up"
    adapter_layer_names = ("petal_mode",)

    def __init__(self, base_layer: nn.Module, group: ProjectionGroup) -> None:
        super().__init__(base_layer)
        self.petal_mode = nn.ParameterDict()
        self.group = group

    @property
    def kind(self) -> str:  # type: ignore[override]  # no layer's is ever set
        return self.group.spec.kind

    def update_layer(self, adapter_name: str, mode: nn.Parameter, inference_mode: bool = False) -> None:
        """Take ``mode``, a parameter ``[R]``, under ``adapter_name``."""
        self.petal_mode[adapter_name] = mode
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The frozen linear's output for ``x [*, in_features]`` plus V M(p)ᵀ U x: ``[*, out_features]``."""
        if self.merged and self._disable_adapters:
            self.unmerge()
        adapter = self.current()
        if adapter is None or self.merged:
            return self.base_layer(x, *args, **kwargs)
        return self.group.project(self, adapter, x)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        applied = super()._apply(*args, **kwargs)  # to(), half(), cuda(): every weight is a tensor of its own again
        self.group.lay_together()
        return applied

    def merge_obstacle(self, adapter_name: str) -> str | None:
        return self.packed() if adapter_name in self.petal_mode else None

    def merged_tensors(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """W' = W + V M(p)ᵀ U, in the explicit form behind its gate, and the bias as it is."""
        parts, base = self.group.tower.parts[adapter_name], self.get_base_layer()
        (weight,) = parts.written_out(self.group.spec.factors, [base.weight], [self.petal_mode[adapter_name]])
        return weight, base.bias

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}"


class ProjectionGroup:
    """The projections that one attention applies to one input: their updates are one call of ``mode_update``.

    The first of them that is called computes all, and the others are handed their results if they are called with the
    same tensor, unchanged, and in the same state. A hook on the attention drops what nobody called for. The frozen
    projections are one GEMM, unless :meth:`obstacle` has a reason.
    """

    def __init__(self, spec: Group, tower: RunningTower) -> None:
        self.spec, self.tower = spec, tower
        self.layers: list[PetalLayer] = []  # PetalLayers, in the order of spec.names
        self._ready: tuple[torch.Tensor, object, dict[PetalLayer, torch.Tensor]] | None = None
        self._together = Together()

    def project(self, layer: PetalLayer, adapter: str, x: torch.Tensor) -> torch.Tensor:
        """The output of ``layer``, one of this group, for ``x [*, in_features]``."""
        compiling = torch.compiler.is_compiling()  # the compiler orders and shares the work itself
        if compiling or len(self.layers) == 1:
            return self._compute([layer], adapter, x, compiling)[0]
        ready, state = self._ready, (adapter, *_state_of(x))
        if ready is not None and ready[0] is x and ready[1] == state and layer in ready[2]:
            result = ready[2].pop(layer)
            if not ready[2]:
                self._ready = None
            return result
        self._ready = None
        if not all(_works(other, adapter) for other in self.layers):
            return self._compute([layer], adapter, x)[0]
        results = dict(zip(self.layers, self._compute(self.layers, adapter, x), strict=True))
        own = results.pop(layer)
        self._ready = (x, state, results)
        return own

    def _compute(
        self, layers: list[PetalLayer], adapter: str, x: torch.Tensor, compiling: bool = False
    ) -> Sequence[torch.Tensor]:
        parts = self.tower.parts[adapter]
        factors: Any = parts.factors[self.spec.factors]
        cores = self.tower.cores(adapter, self, layers)
        if parts.form == "explicit":
            weights = factors.written_out([layer.get_base_layer().weight for layer in layers], cores)
            adapted = zip(layers, weights, strict=True)
            return [functional_call(layer.base_layer, {"weight": weight}, (x,)) for layer, weight in adapted]
        u: torch.Tensor | None = factors.u
        own, whole = x, len(layers) == len(self.layers)
        frozen = self._frozen(x) if whole and len(layers) > 1 and not compiling else None
        v = factors.v[str(self.spec.out_features)]
        if compiling or self.spec.several_read_input:
            x, u = self.tower.projected(adapter, self.spec.factors, x, factors.u, compiling)
        dropout = parts.dropout if layers[0].training else 0.0
        seed = self.tower.seed(self, x.device) if dropout > 0 and whole else None
        copies = self.tower.copies(adapter, self, x, u, v) if whole else None
        options: Any = (dropout, parts.shared_mask, seed, copies)
        if frozen is not None:
            return projected_update(own, x if u is None else None, u, v, cores, *frozen, *options)
        return update(x, u, v, cores, [layer.base_layer(own) for layer in layers], *options)

    # ---- the frozen projections as one GEMM ----

    def _linears(self) -> list[Any]:
        return [layer.base_layer for layer in self.layers]

    def _frozen(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """Weight and bias of all the frozen projections, or None if they have to be called one by one."""
        linears = self._linears()
        found = self._together.weights(linears)
        # In a process of several the weights' memory may be a wrapper's while the model runs (FSDP gathers them).
        if found is None and not distributed() and why_apart(linears) is None:
            self._together.lay(linears)
            found = self._together.weights(linears)
        if found is None or (x.dtype != found[0].dtype and not autocasts(x.device)):
            return None
        return found

    def lay_together(self) -> None:
        """Let the frozen weights lie in one memory, if they may and all are in place."""
        linears = self._linears()
        if len(linears) == len(self.spec.names) > 1 and why_apart(linears) is None:
            self._together.lay(linears)

    def obstacle(self) -> str | None:
        """Why the frozen projections are called one by one, in words, or None if they are one GEMM."""
        linears = self._linears()
        if self._together.weights(linears) is not None:
            return None
        if reason := why_apart(linears):
            return reason
        return "their weights do not lie in one memory, and other processes run" if distributed() else None

    def forget(self, *_: Any) -> None:
        """Hook after the attention, whether it succeeded or not."""
        self._ready = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ready": None}  # activations of an interrupted pass cannot be copied


def _works(layer: PetalLayer, adapter: str) -> bool:
    here = not layer.merged_adapters and layer.current() == adapter
    # FSDP may hold each projection for itself.
    return here and not (is_managed(layer) and in_shards((layer.base_layer.weight, layer.petal_mode[adapter])))


def _state_of(x: torch.Tensor) -> tuple[int | None, bool, torch.dtype]:
    """What must not have changed between two calls for the second to be handed a result of the first."""
    return (
        None if x.is_inference() else x._version,
        torch.is_grad_enabled(),
        autocast_dtype(x),
    )


def project(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """``x Uᵀ`` ``[..., R]`` in the dtype that ``mode_update`` would use."""
    dtype = autocast_dtype(x)
    return F.linear(cast(x, dtype), cast(u, dtype))
