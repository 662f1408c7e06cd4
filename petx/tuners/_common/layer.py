"""The layer that takes the place of a frozen linear: what is alike in every method."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from petx.errors import UserError
from petx.tuners._common.mixed import Rows

__all__ = ["AdapterLayer", "refuse_several", "why_packed"]


class AdapterLayer(nn.Module, BaseTunerLayer):
    """A frozen linear with what one method adds for every adapter name, in ``adapter_layer_names[0]``.

    Args:
        base_layer: the frozen linear, ``[*, in_features] -> [*, out_features]``.
    """

    method: ClassVar[str]  # its name in messages
    one_at_a_time: ClassVar[str]  # why several adapters do not add up
    kind: str  # what the linear is, in words

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter: str | list[str] = []
        self._rows: Rows | None = None  # set while a batch of several adapters runs
        # Weight and bias of the frozen linear while an adapter is merged.
        self._before_merge: tuple[nn.Parameter, nn.Parameter | None] | None = None

    def get_base_layer(self) -> Any:
        """The frozen linear: torch's, a quantised one, or another library's with the same attributes."""
        return super().get_base_layer()

    @property
    def in_features(self) -> int:
        return self.get_base_layer().in_features

    @property
    def out_features(self) -> int:
        return self.get_base_layer().out_features

    @property
    def adapters(self) -> nn.ModuleDict | nn.ParameterDict:
        """Adapter name -> what this layer holds for it."""
        return getattr(self, self.adapter_layer_names[0])

    def set_adapter(self, adapter_names: str | Sequence[str], inference_mode: bool = False) -> None:
        """Make one adapter the active one; it trains unless ``inference_mode``."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        refuse_several(type(self), names)
        super().set_adapter(names, inference_mode=inference_mode)

    def current(self) -> str | None:
        """Name of the adapter that works here now, or None."""
        if self._disable_adapters or not self._active_adapter:
            return None
        name = self._active_adapter if isinstance(self._active_adapter, str) else self._active_adapter[0]
        return name if name in self.adapters else None

    def _replicate_for_data_parallel(self) -> Any:
        replica: Any = super()._replicate_for_data_parallel()
        replica.forward = _refuse_data_parallel
        return replica

    # ---- merging ----

    def packed(self) -> str | None:
        """Why the frozen weight cannot be changed exactly, or None: it is quantised, in words."""
        return why_packed(self.get_base_layer().weight)

    def merge_obstacle(self, adapter_name: str) -> str | None:
        """Why ``adapter_name`` cannot be folded into the linear here, or None if it can or is not here."""
        raise NotImplementedError

    def merged_tensors(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias of the linear with the adapter folded in."""
        raise NotImplementedError

    @torch.inference_mode(False)
    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: Sequence[str] | None = None) -> None:
        """Fold an adapter into this linear alone; the model's ``merge_adapter`` checks all layers first."""
        for name in check_adapters_to_merge(self, None if adapter_names is None else list(adapter_names)):
            if reason := self.merge_obstacle(name):
                raise UserError(f"{self.method} adapter {name!r} cannot be merged into a {self.kind}: {reason}")
            if name in self.adapters:
                tensors = self.merged_tensors(name)
                if safe_merge:
                    self.refuse_not_finite(name, *tensors)
                self.take(name, *tensors)

    def refuse_not_finite(self, adapter_name: str, *tensors: torch.Tensor | None) -> None:
        if not all(tensor.isfinite().all() for tensor in tensors if tensor is not None):
            raise UserError(f"{self.method} adapter {adapter_name!r} would put non-finite values into a {self.kind}")

    def take(self, adapter_name: str, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Put a merged weight and bias in place; the frozen ones are kept for :meth:`unmerge`."""
        base = self.get_base_layer()
        self._before_merge = (base.weight, base.bias)
        base.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not base.bias:
            base.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.merged_adapters.append(adapter_name)

    def unmerge(self) -> None:
        """Put the frozen linear's own weight and bias back, bit for bit."""
        if self._before_merge is not None:
            base = self.get_base_layer()
            device = base.weight.device  # the model may have moved since
            base.weight, base.bias = (_moved(own, device) for own in self._before_merge)
            self._before_merge = None
        self.merged_adapters.clear()

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The frozen linear's output ``[*, out_features]``, adapted by the active adapter."""
        raise NotImplementedError


def why_packed(weight: torch.Tensor) -> str | None:
    """Why a frozen linear's ``weight`` cannot be changed exactly, in words, or None if it can."""
    kind, dtype = type(weight.data), weight.dtype
    if type(weight) is nn.Parameter and kind is torch.Tensor and dtype.is_floating_point and dtype.itemsize > 1:
        return None
    named = type(weight).__name__ if kind is torch.Tensor else kind.__name__
    return f"the base is quantised (its weight is a {named} of {dtype}), and changing it would not be exact"


def _refuse_data_parallel(*args: Any, **kwargs: Any) -> torch.Tensor:
    raise UserError(
        "torch.nn.DataParallel is not supported: its replicas share the hooks of the original model. Use "
        "DistributedDataParallel (torchrun or accelerate launch), or show the process one GPU (CUDA_VISIBLE_DEVICES)"
    )


def _moved(own: nn.Parameter | None, device: torch.device) -> nn.Parameter | None:
    if own is None or own.device == device:
        return own
    return nn.Parameter(own.to(device), requires_grad=own.requires_grad)


def refuse_several(layer_class: type[AdapterLayer], names: Sequence[str]) -> None:
    """Raise UserError for more than one adapter."""
    if len(names) > 1:
        raise UserError(
            f"{layer_class.method}: one adapter at a time can be active or merged, got {list(names)}: "
            f"{layer_class.one_at_a_time}"
        )
