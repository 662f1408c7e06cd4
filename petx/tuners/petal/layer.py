"""The layer that takes the place of a frozen projection, and the groups in which projections are computed."""

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from petx import functional
from petx.errors import UserError
from petx.functional._operation import autocast_dtype, cast

__all__ = ["PetalLayer", "ProjectionGroup", "refuse_several"]


class PetalLayer(nn.Module, BaseTunerLayer):
    """A frozen linear with a mode vector for every adapter name; factors and core are its tower's.

    Args:
        base_layer: the frozen linear, ``[*, in_features] -> [*, out_features]``.
        group: the :class:`ProjectionGroup` it belongs to.
    """

    adapter_layer_names = ("petal_mode",)

    def __init__(self, base_layer, group):
        super().__init__()
        self.base_layer = base_layer
        self.petal_mode = nn.ParameterDict()
        self.group = group
        self.merged_adapters = []
        self._disable_adapters = False
        self._active_adapter = []
        self._before_merge = None

    @property
    def kind(self):
        return self.group.spec.kind

    def update_layer(self, adapter_name, mode, inference_mode=False):
        """Take ``mode``, a parameter ``[R]``, under ``adapter_name``."""
        self.petal_mode[adapter_name] = mode
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def set_adapter(self, adapter_names, inference_mode=False):
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        refuse_several(names)
        super().set_adapter(names, inference_mode=inference_mode)

    def current(self):
        """Name of the adapter that works here now, or None."""
        if self._disable_adapters or not self._active_adapter:
            return None
        name = self._active_adapter if isinstance(self._active_adapter, str) else self._active_adapter[0]
        return name if name in self.petal_mode else None

    def forward(self, x, *args, **kwargs):
        if self.merged and self._disable_adapters:
            self.unmerge()
        adapter = self.current()
        if adapter is None or self.merged:
            return self.base_layer(x, *args, **kwargs)
        return self.group.project(self, adapter, x)

    @torch.no_grad()
    def merge(self, safe_merge=False, adapter_names=None):
        """Fold the update into the weight, W' = W + V M(p)ᵀ U."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.petal_mode:
                parts = self.group.tower.parts[name]
                factors = parts.factors[self.group.spec.factors]
                cores = parts.cores(self.group.spec.factors, self.petal_mode[name].unsqueeze(0))
                v = factors.v[str(self.group.spec.out_features)]
                (weight,) = functional.cp_reconstruct([self.get_base_layer().weight], factors.u, v, cores)
                self.take(weight, name, safe_merge)

    def take(self, weight, adapter_name, safe_merge=False):
        """Put a merged weight in place; the frozen one is kept for :meth:`unmerge`."""
        if safe_merge and not weight.isfinite().all():
            raise UserError(f"PETAL adapter {adapter_name!r} would put non-finite values into a {self.kind}")
        base = self.get_base_layer()
        self._before_merge = base.weight
        base.weight = nn.Parameter(weight, requires_grad=False)
        self.merged_adapters.append(adapter_name)

    def unmerge(self):
        """Put the frozen linear's own weight back, bit for bit."""
        if self._before_merge is not None:
            base = self.get_base_layer()
            own = self._before_merge.to(base.weight.device)  # the model may have moved since
            base.weight = nn.Parameter(own, requires_grad=False)
            self._before_merge = None
        self.merged_adapters.clear()

    def extra_repr(self):
        return f"kind={self.kind!r}"


class ProjectionGroup:
    """The projections that one attention applies to one input: their updates are one call of ``mode_update``.

    The first of them that is called computes all, and the others are handed their results if they are called with the
    same tensor, unchanged, and in the same state. A hook on the attention drops what nobody called for.
    """

    def __init__(self, spec, tower):
        self.spec, self.tower = spec, tower
        self.layers = []  # PetalLayers, in the order of spec.names
        self._ready = None

    def project(self, layer, adapter, x):
        compiling = torch.compiler.is_compiling()  # the compiler orders and shares the work itself
        if compiling or len(self.layers) == 1 or not all(_works(other, adapter) for other in self.layers):
            return self._compute([layer], adapter, x, compiling)[0]
        ready, state = self._ready, (adapter, *_state_of(x))
        if ready is not None and ready[0] is x and ready[1] == state and layer in ready[2]:
            result = ready[2].pop(layer)
            if not ready[2]:
                self._ready = None
            return result
        self._ready = None
        results = dict(zip(self.layers, self._compute(self.layers, adapter, x), strict=True))
        own = results.pop(layer)
        self._ready = (x, state, results)
        return own

    def _compute(self, layers, adapter, x, compiling=False):
        bases = [layer.base_layer(x) for layer in layers]
        parts = self.tower.parts[adapter]
        factors, cores = parts.factors[self.spec.factors], self.tower.cores(adapter, self, layers)
        u = factors.u
        if compiling or self.spec.several_read_input:
            x, u = self.tower.projected(adapter, self.spec.factors, x, u, compiling)
        return functional.mode_update(
            x,
            u,
            factors.v[str(self.spec.out_features)],
            cores,
            bases,
            dropout=parts.dropout if layers[0].training else 0.0,
            shared_mask=parts.shared_mask,
        )

    def forget(self, *_):
        """Hook after the attention, whether it succeeded or not."""
        self._ready = None

    def __getstate__(self):
        return self.__dict__ | {"_ready": None}  # activations of an interrupted pass cannot be copied


def _works(layer, adapter):
    return not layer.merged_adapters and layer.current() == adapter


def _state_of(x):
    """What must not have changed between two calls for the second to be handed a result of the first."""
    return (
        None if x.is_inference() else x._version,
        torch.is_grad_enabled(),
        autocast_dtype(x),
    )


def project(x, u):
    """``x Uᵀ`` ``[..., R]`` in the dtype that ``mode_update`` would use."""
    dtype = autocast_dtype(x)
    return F.linear(cast(x, dtype), cast(u, dtype))


def refuse_several(names):
    """Raise ValueError for more than one adapter."""
    if len(names) > 1:
        raise ValueError(
            f"PETAL: one adapter at a time can be active or merged, got {names}: the experts of two would not add up"
        )
