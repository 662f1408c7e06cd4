"""The layers that take the place of a frozen linear: the encoder site and the decoder's value projection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from petx.errors import UserError
from petx.nn import GatedAdapter
from petx.tuners._common.layer import AdapterLayer
from petx.tuners._common.sharded import is_managed, refuse_shards
from petx.tuners.vlpet.config import needs_input

if TYPE_CHECKING:
    from petx.tuners.vlpet.values import ValueGroup

__all__ = ["EncoderSite", "ValueSite", "VLPetLayer"]


class VLPetLayer(AdapterLayer):
    """A frozen linear with one :class:`petx.nn.GatedAdapter` per adapter name beside it.

    Args:
        base_layer: the frozen linear, ``[*, in_features] -> [*, out_features]``.
        kind: what the site is, in words ("encoder attention output").
    """

    method = "VL-PET"
    one_at_a_time = "a site multiplies by its gate, so adapters do not add up"
    adapter_layer_names = ("vlpet_adapter",)

    def __init__(self, base_layer: nn.Module, kind: str) -> None:
        super().__init__(base_layer)
        self.kind = kind
        self.vlpet_adapter = nn.ModuleDict()
        self._masked: set[str] = set()  # names of the adapters that leave padding out
        # attention_mask and X of the running forward pass: handed over, used once and let go.
        self._mask: torch.Tensor | None = None
        self._x: torch.Tensor | None = None
        self.tap_paths: dict[str, str] = {}  # what a hook brings ("input", "mask") -> path of the module it is on
        self.adapts_itself = True  # False while the layer around does it (petx.tuners.vlpet.fused)
        self._hooks: list[RemovableHandle] = []

    def update_layer(
        self, adapter_name: str, adapter: nn.Module, reads_mask: bool = False, inference_mode: bool = False
    ) -> None:
        """Put ``adapter``, a module, in place under ``adapter_name``; ``reads_mask``: it wants the padding mask."""
        self.vlpet_adapter[adapter_name] = adapter
        (self._masked.add if reads_mask else self._masked.discard)(adapter_name)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def connect(self, model: nn.Module) -> None:
        """Hook up the taps: ``tap_paths`` says which module of ``model`` brings what."""
        # Hooks are bound methods of this layer, so that deepcopy of the whole model copies the connection too.
        for what, path in self.tap_paths.items():
            receive = {"input": self._receive_input, "mask": self._receive_mask}[what]
            self._hooks.append(model.get_submodule(path).register_forward_pre_hook(receive, with_kwargs=True))

    def disconnect(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _receive_input(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._x = args[0] if args else next(iter(kwargs.values()))

    def _receive_mask(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if "attention_mask" not in kwargs:
            raise UserError(
                f"VL-PET: {type(module).__name__} was called without attention_mask=, which mask_padding=True reads"
            )
        self._mask = kwargs["attention_mask"]

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The frozen linear's output for ``hidden [*, in_features]``, adapted: ``[*, out_features]``, same dtype."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        out = self.base_layer(hidden, *args, **kwargs)
        if not self.adapts_itself:
            return out
        x = self._x
        if self._rows is not None:
            mask, self._x, self._mask = self._mask, None, None
            return self._rows.run(self._adapt_rows, (hidden, out, x, mask), {})
        adapter, mask = self.take_up()
        return out if adapter is None else self._adapt(adapter, hidden, out, x, mask)

    def _adapt_rows(self, name: str, given: tuple, _: dict) -> torch.Tensor:
        hidden, out, x, mask = given
        if name not in self.vlpet_adapter:
            return out
        adapter: Any = self.vlpet_adapter[name]
        return self._adapt(adapter, hidden, out, x, _padding(mask) if name in self._masked else None)

    def take_up(self) -> tuple[GatedAdapter | None, torch.Tensor | None]:
        """The adapter of this pass, or None, and the padding mask it reads; lets go of what the taps brought."""
        mask, self._x, self._mask = self._mask, None, None
        adapter = self.running_adapter()
        if adapter is not None and is_managed(self):
            refuse_shards("VL-PET", f"the {self.kind}", adapter.named_parameters())
        return adapter, _padding(mask) if adapter is not None and self.current() in self._masked else None

    def running_adapter(self) -> Any:
        """The adapter that a pass runs, a :class:`petx.nn.GatedAdapter`, or None."""
        name = self.current()
        return None if name is None or self.merged else self.vlpet_adapter[name]

    def _adapt(
        self,
        adapter: GatedAdapter,
        hidden: torch.Tensor,
        h: torch.Tensor,
        x: torch.Tensor | None,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """``h``, what the linear made of ``hidden``, adapted."""
        raise NotImplementedError

    def merge_obstacle(self, adapter_name: str) -> str | None:
        """Why ``adapter_name`` cannot be folded into the linear here, or None if it can."""
        if adapter_name not in self.vlpet_adapter:
            return None
        if reason := self.packed():
            return reason
        adapter: Any = self.vlpet_adapter[adapter_name]
        if adapter.granularity not in ("none", "middleY"):
            return f"its {adapter.granularity} gate depends on the input"
        if adapter.up.weight.any():
            return "ΔH = up(gelu(down(·))) is not linear in the input, and its up weights are not zero"
        return None

    def merged_tensors(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias with an adapter that is an affine map of H: W' = diag(s G) W, b' = s G (b + b_up)."""
        adapter: Any = self.vlpet_adapter[adapter_name]
        base = self.get_base_layer()
        gain = channel_gain(adapter)
        weight = (base.weight * gain.unsqueeze(1)).to(base.weight.dtype)
        biases = [bias for bias in (base.bias, adapter.up.bias) if bias is not None and bias.any()]
        return weight, (gain * sum(biases)).to(base.weight.dtype) if biases else base.bias

    @torch.inference_mode(False)
    @torch.no_grad()
    def fold_gate(self, adapter_name: str) -> None:
        """Move s·(1 + z) of a middleY adapter, or the s of one without gate, into the linear and the up projection.

        A sequential adapter's down projection reads what is now scaled, so its columns are divided by the same.
        """
        adapter: Any = self.vlpet_adapter[adapter_name]
        base = self.get_base_layer()
        gain = channel_gain(adapter)
        if adapter.placement == "sequential":
            adapter.down.weight.div_(gain.to(adapter.down.weight.dtype))
        for tensor in (base.weight, base.bias, adapter.up.weight, adapter.up.bias):
            if tensor is not None:
                scale = gain.to(tensor.dtype)
                tensor.mul_(scale if tensor.dim() == 1 else scale.unsqueeze(1))
        if adapter.granularity == "middleY":
            del adapter.gate_scale
        adapter.granularity, adapter.scale = "none", 1.0

    def __getstate__(self) -> dict[str, Any]:
        # A pass that was interrupted leaves activations behind, and those cannot be copied.
        return self.__dict__ | {"_x": None, "_mask": None}

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}"


class EncoderSite(VLPetLayer):
    """The last linear of an encoder sub-layer, whose output H becomes s·G ⊙ (H + ΔH).

    The sub-layer's residual input X comes from a tap on a module that runs before this one in the same sub-layer.
    """

    def _adapt(
        self,
        adapter: GatedAdapter,
        hidden: torch.Tensor,
        h: torch.Tensor,
        x: torch.Tensor | None,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        if x is not None:
            x = x.to(h.dtype)  # a T5 with its `wo` kept in float32 has a residual stream of another dtype
        elif needs_input(adapter.granularity, adapter.placement):
            raise UserError(
                f"VL-PET: the adapter at an {self.kind} reads the sub-layer's input X, but the module tapped for it "
                "did not run before it in this forward pass; check the site's 'input' in encoder_sites"
            )
        return adapter(h, x, mask)


class ValueSite(VLPetLayer):
    """The value projection of a decoder's cross-attention: v becomes v + up(gelu(down(e))), e the encoder output."""

    # Of the decoder's value sites, which may compute them together (petx.tuners.vlpet.values), and the place there.
    group: ValueGroup | None = None
    index: int

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        applied = super()._apply(*args, **kwargs)  # to(), half(), cuda(): every weight is a tensor of its own again
        if self.group is not None:
            self.group.lay_together()
        return applied

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """V ``[..., L_e, out_features]`` for the encoder output ``hidden [..., L_e, in_features]``."""
        together = None if self.group is None or args or kwargs else self.group.values(self, hidden)
        return super().forward(hidden, *args, **kwargs) if together is None else together

    def _adapt(
        self,
        adapter: GatedAdapter,
        hidden: torch.Tensor,
        h: torch.Tensor,
        x: torch.Tensor | None,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        return adapter(hidden.to(h.dtype), h, mask)


def _padding(mask: Any) -> torch.Tensor | None:
    """``[B, L]``, true or 1 where a token counts, from what an attention layer is given; None if all tokens do."""
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor) or mask.dim() not in (2, 4):
        raise UserError(
            "VL-PET: mask_padding=True needs a [B, L] or [B, 1, Q, L] attention mask, got "
            f"{list(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__} "
            "(use attn_implementation='sdpa' or 'eager')"
        )
    if mask.dim() == 2:
        return mask
    mask = mask[:, 0, 0]  # padding hides a key from every query alike
    return mask if mask.dtype == torch.bool else mask == 0  # additive masks are 0 if a token counts


def channel_gain(adapter: Any) -> torch.Tensor:
    """s·G ``[d]`` of an adapter whose gate does not depend on the input (middleY or none)."""
    place = adapter.up.weight
    dtype = torch.promote_types(place.dtype, torch.float32)
    gain = torch.full((adapter.features,), adapter.scale, device=place.device, dtype=dtype)
    if adapter.granularity == "middleY":
        z = adapter.gate_scale.to(dtype)
        gain = gain * (1 + (z if adapter.middle_y == "linear" else torch.sigmoid(z)))
    return gain
