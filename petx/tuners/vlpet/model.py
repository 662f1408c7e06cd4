"""The PEFT tuner: puts the layers where the sites are, and answers for PEFT's operations."""

from collections.abc import Sequence
from contextlib import ExitStack
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.utils.hooks import RemovableHandle

from petx.errors import UserError
from petx.tuners._common.mixed import Rows
from petx.tuners._common.model import AdapterModel
from petx.tuners._common.paths import plain, plain_modules
from petx.tuners._common.threads import OneThread, stack_of
from petx.tuners.vlpet import fused, report
from petx.tuners.vlpet.config import VLPetConfig
from petx.tuners.vlpet.layer import EncoderSite, ValueSite, VLPetLayer, channel_gain
from petx.tuners.vlpet.sites import Site, check_fit, find_sites, modules_to_train, new_adapter
from petx.tuners.vlpet.values import ValueGroup, decoder_of

__all__ = ["VLPetModel"]


class VLPetModel(AdapterModel):
    """VL-PET for an encoder-decoder model; use it through :func:`peft.get_peft_model` with a :class:`VLPetConfig`.

    Raises UserError (a ValueError) before the model is touched if the configuration does not fit it.
    """

    prefix = "vlpet_"
    method = "VL-PET"
    tuner_layer_cls = VLPetLayer
    named_container = "vlpet_adapter"
    report: ClassVar[ModuleType] = report
    _threads: Sequence[RemovableHandle] = ()

    # ---- injection ----

    @staticmethod
    def _plan(model: nn.Module, config: VLPetConfig) -> dict[str, Site]:
        sites = find_sites(model, config)
        config.modules_to_save = modules_to_train(model, config) or None
        config.host = check_fit(model, config, sites)
        config.target_modules = tuple(sites)
        return sites

    @staticmethod
    def _tensors(model: nn.Module, config: VLPetConfig, plan: dict[str, Site]) -> dict[str, torch.Tensor]:
        modules = plain_modules(model)
        return {
            f"model.{path}.vlpet_adapter.{key}": tensor
            for path, site in plan.items()
            for key, tensor in new_adapter(config, site.side, modules[path], device="meta").state_dict().items()
        }

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, OptimizedModule):
            return  # the linear inside it comes next
        config: VLPetConfig = peft_config
        site = self._planned[plain(current_key)]
        adapter = new_adapter(config, site.side, target)
        layer: Any = target
        if not isinstance(target, VLPetLayer):
            layer = (EncoderSite if site.side == "encoder" else ValueSite)(target, site.kind)
            layer._active_adapter = self.active_adapters
        layer.update_layer(adapter_name, adapter, config.reads_mask(site.side), config.inference_mode)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)
        if config.reads_input(site.side):
            layer.tap_paths["input"] = site.input
        if config.reads_mask(site.side):
            layer.tap_paths["mask"] = site.mask

    def _connect(self, model: nn.Module) -> None:
        layers = self._layers()
        for layer in layers.values():
            layer.connect(model)
        self._join(model)
        one, stacks = OneThread(), dict.fromkeys(stack_of(model, path) for path in layers)
        self._threads = [hook for stack in stacks for hook in one.connect(stack)]

    def _disconnect(self) -> None:
        for layer in self._layers().values():
            layer.disconnect()
        for hook in self._threads:
            hook.remove()
        self._threads = []
        self._separate()

    def _join(self, model: nn.Module) -> None:
        """Let sites run together with what is around them, if they can."""
        for layer in self._host_layers().values():
            fused.fuse(layer)
        # A merged attention (T5Gemma 2) projects its own tokens between the encoder's, so its values stay apart.
        values = {
            path: layer
            for path, layer in self._layers().items()
            if isinstance(layer, ValueSite) and ".self_attn." not in path
        }
        decoder = decoder_of(model, list(values)) if len(values) > 1 else None
        if decoder is not None:
            ValueGroup(decoder, list(values.values()))

    def _separate(self) -> None:
        for layer in self._host_layers().values():
            fused.separate(layer)
        for group in self.value_groups():
            group.disconnect()

    # ---- what runs in one operation ----

    def _host_layers(self) -> dict[str, nn.Module]:
        """Path -> the host's layer that an encoder site sits in, if a fused form of its kind is known."""
        found = {}
        for path, site in self._layers().items():
            above = path.rpartition(".")[0] if isinstance(site, EncoderSite) else ""
            while above and fused.fused_class(self.model.get_submodule(above)) is None:
                above = above.rpartition(".")[0]
            if above:
                found[above] = self.model.get_submodule(above)
        return found

    def unfused(self) -> dict[str, str | None]:
        """Path of a host's layer with encoder sites -> why its tail is not in the adapter's operation, None if it is.

        A site in a layer of which no fused form is known stands here by its own path.
        """
        layers = self._host_layers()
        found = {
            path: fused.obstacle_now(layer) if isinstance(layer, fused.FusedLayer) else fused.obstacle(layer)
            for path, layer in layers.items()
        }
        for path, site in self._layers().items():
            if isinstance(site, EncoderSite) and not any(path.startswith(f"{layer}.") for layer in layers):
                found[path] = f"no fused form of a layer of {type(self.model).__name__} is known"
        return found

    def value_groups(self) -> list[ValueGroup]:
        """The decoder's :class:`petx.tuners.vlpet.values.ValueGroup`, or none."""
        groups = [layer.group for layer in self._layers().values() if isinstance(layer, ValueSite)]
        return list({id(group): group for group in groups if group is not None}.values())

    # ---- batches of several adapters ----

    def _enter_mixed(self, stack: ExitStack, rows: Rows) -> None:
        super()._enter_mixed(stack, rows)
        self._separate()
        stack.callback(self._join, self.model)
        for layer in self._layers().values():
            layer._rows = rows
            stack.callback(setattr, layer, "_rows", None)

    # ---- merging ----

    def _check_mergeable(self, adapter_name: str, whole: bool) -> None:
        for path, layer in self._layers().items():
            if reason := layer.merge_obstacle(adapter_name):
                raise UserError(
                    f"VL-PET adapter {adapter_name!r} cannot be merged: at {path}, {reason}. Only an adapter with "
                    "granularity 'none' or 'middleY' and zero up weights is an affine map that fits into the frozen "
                    "linear. Keep the adapter (fold_gate() takes a middleY gate out of it), or drop it with unload()"
                )

    def _merge(self, adapter_name: str, safe_merge: bool) -> None:
        layers = self._layers(adapter_name)
        merged = {path: layer.merged_tensors(adapter_name) for path, layer in layers.items()}
        for path, tensors in merged.items():
            if safe_merge and not all(tensor.isfinite().all() for tensor in tensors if tensor is not None):
                raise UserError(f"VL-PET adapter {adapter_name!r} would put non-finite values into {path}")
        for path, layer in layers.items():
            layer.take(adapter_name, *merged[path])

    def fold_gate(self, adapter_name: str | None = None) -> None:
        r"""Turn a middleY adapter into one without a gate that computes the same, for deployment.

        With g = s·(1 + z): W' = diag(g) W and b' = g b in the frozen linear, U' = diag(g) U and likewise its bias, and
        for a sequential adapter D' = D diag(1/g), since it reads the scaled H. The frozen model is changed: save it
        (after :meth:`unload`) together with the adapter, and do not disable the adapter afterwards.

        Raises UserError, with nothing changed, for any other gate, for ``modification="phm"`` (a scaled Kronecker sum
        is not one), for a g that is zero or not finite, and where other adapters share the frozen model.
        """
        name = report.adapter_named(self, adapter_name)
        config: Any = self.peft_config[name]
        if list(self.peft_config) != [name]:
            raise UserError(f"fold_gate changes the frozen model, which the adapters {list(self.peft_config)} share")
        if config.modification == "phm":
            raise UserError("fold_gate: modification='phm' cannot be scaled by channel")
        layers = {path: layer for path, layer in self._layers().items() if name in layer.vlpet_adapter}
        for path, layer in layers.items():
            adapter = layer.vlpet_adapter[name]
            if reason := layer.packed():
                raise UserError(f"fold_gate: at {path}, {reason}")
            if adapter.granularity not in ("none", "middleY"):
                raise UserError(f"fold_gate: at {path}, the {adapter.granularity} gate depends on the input")
            gain = channel_gain(adapter)
            if layer.merged or not gain.isfinite().all() or (gain == 0).any():
                why = "is merged" if layer.merged else "has a gate that is zero or not finite"
                raise UserError(f"fold_gate: the adapter at {path} {why}")
        for layer in layers.values():
            layer.fold_gate(name)
        config.granularity = config.decoder_granularity = "none"
        config.scale = 1.0

    # ---- saved tensors ----

    def _own_tensors(self, adapter_name: str) -> dict[str, torch.Tensor]:
        return {
            f"model.{path}.vlpet_adapter.{adapter_name}.{key}": tensor
            for path, layer in self._layers(adapter_name).items()
            for key, tensor in layer.vlpet_adapter[adapter_name].state_dict().items()
        }
