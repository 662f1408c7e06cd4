"""The PEFT tuner: puts the layers where the sites are, and answers for PEFT's operations."""

import copy

from peft.tuners.tuners_utils import BaseTuner

from petx.tuners.vlpet import report
from petx.tuners.vlpet.layer import EncoderSite, ValueSite, VLPetLayer, channel_gain, refuse_several
from petx.tuners.vlpet.sites import check_fit, find_sites, modules_to_train, new_adapter

__all__ = ["VLPetModel"]


class VLPetModel(BaseTuner):
    """VL-PET for an encoder-decoder model; use it through :func:`peft.get_peft_model` with a :class:`VLPetConfig`.

    Raises UserError (a ValueError) before the model is touched where the configuration does not fit it.
    """

    prefix = "vlpet_"
    tuner_layer_cls = VLPetLayer
    report = report

    # ---- injection ----

    def inject_adapter(self, model, adapter_name, *args, **kwargs):
        config = self.peft_config[adapter_name]
        resolved = copy.copy(config)  # the user's configuration changes only once it is known to fit
        resolved.resolve(self.get_model_config(model).get("model_type"))
        sites = find_sites(model, resolved)
        resolved.modules_to_save = modules_to_train(model, resolved) or None
        resolved.host = check_fit(model, resolved, sites)
        resolved.target_modules = tuple(sites)
        vars(config).update(vars(resolved))
        self._sites = sites
        self._disconnect()  # PEFT copies modules that are trained whole, and their hooks with them
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        finally:
            del self._sites
            for layer in self._layers().values():
                layer.connect(model)

    def _prepare_adapter_config(self, peft_config, model_config):
        return peft_config  # inject_adapter did it, with the model at hand

    @staticmethod
    def _check_target_module_exists(peft_config, key):
        return key in peft_config.target_modules

    def _create_and_replace(self, config, adapter_name, target, target_name, parent, current_key):
        site = self._sites[current_key]
        adapter = new_adapter(config, site.side, target)
        layer = target
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

    def _disconnect(self):
        for layer in self._layers().values():
            layer.disconnect()

    def _layers(self):
        return {path: module for path, module in self.model.named_modules() if isinstance(module, VLPetLayer)}

    # ---- PEFT's operations, where VL-PET differs ----

    def set_adapter(self, adapter_name, inference_mode=False):
        refuse_several([adapter_name] if isinstance(adapter_name, str) else list(adapter_name))
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    def merge_adapter(self, adapter_names=None, safe_merge=False):
        self._check_mergeable(adapter_names)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def _unload_and_optionally_merge(self, merge=True, progressbar=False, safe_merge=False, adapter_names=None):
        if merge:
            self._check_mergeable(adapter_names)
        self._disconnect()
        return super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)

    def _check_mergeable(self, adapter_names):
        names = self.active_adapters if adapter_names is None else adapter_names
        layers = self._layers()
        merged = {name for layer in layers.values() for name in layer.merged_adapters}
        refuse_several(sorted({*names, *merged}))
        for name in names:
            for path, layer in layers.items():
                if reason := layer.merge_obstacle(name):
                    raise ValueError(
                        f"VL-PET adapter {name!r} cannot be merged: at {path}, {reason}. Only an adapter with "
                        "granularity 'none' or 'middleY' and zero up weights is an affine map that fits into the "
                        "frozen linear. Keep the adapter (fold_gate() takes a middleY gate out of it), or drop it with "
                        "unload()"
                    )

    def fold_gate(self, adapter_name=None):
        r"""Turn a middleY adapter into one without a gate that computes the same, for deployment.

        With g = s·(1 + z): W' = diag(g) W and b' = g b in the frozen linear, U' = diag(g) U and likewise its bias, and
        for a sequential adapter D' = D diag(1/g), since it reads the scaled H. The frozen model is changed: save it
        (after :meth:`unload`) together with the adapter, and do not disable the adapter afterwards.

        Raises ValueError, with nothing changed, for any other gate, for ``modification="phm"`` (a scaled Kronecker sum
        is not one), for a g that is zero or not finite, and where other adapters share the frozen model.
        """
        name = report.adapter_named(self, adapter_name)
        config = self.peft_config[name]
        if list(self.peft_config) != [name]:
            raise ValueError(f"fold_gate changes the frozen model, which the adapters {list(self.peft_config)} share")
        if config.modification == "phm":
            raise ValueError("fold_gate: modification='phm' cannot be scaled by channel")
        layers = {path: layer for path, layer in self._layers().items() if name in layer.vlpet_adapter}
        for path, layer in layers.items():
            adapter = layer.vlpet_adapter[name]
            if adapter.granularity not in ("none", "middleY"):
                raise ValueError(f"fold_gate: at {path}, the {adapter.granularity} gate depends on the input")
            gain = channel_gain(adapter)
            if layer.merged or not gain.isfinite().all() or (gain == 0).any():
                why = "is merged" if layer.merged else "has a gate that is zero or not finite"
                raise ValueError(f"fold_gate: the adapter at {path} {why}")
        for layer in layers.values():
            layer.fold_gate(name)
        config.granularity = config.decoder_granularity = "none"
        config.scale = 1.0

    @classmethod
    def _remove_adapter_name_from_key(cls, key, adapter_name):
        inside = f".{VLPetLayer.adapter_layer_names[0]}."
        if f"{inside}{adapter_name}." in key:
            return key.replace(f"{inside}{adapter_name}.", inside, 1)
        return super()._remove_adapter_name_from_key(key, adapter_name)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Refuse a state dict that has a part of an adapter, or tensors that fit nowhere: PEFT would load what fits."""
        inside = f".{VLPetLayer.adapter_layer_names[0]}."
        given = {key for key in state_dict if key.startswith(prefix) and inside in key}
        known = set()
        for name in self.peft_config:
            own = {
                f"{prefix}model.{path}{inside}{name}.{key}"
                for path, layer in self._layers().items()
                if name in layer.vlpet_adapter
                for key in layer.vlpet_adapter[name].state_dict()
            }
            if given & own and own - given:
                raise ValueError(
                    f"VL-PET adapter {name!r}: the saved tensors lack {_some(own - given)}, so nothing was loaded"
                )
            known |= own
        if given - known:
            raise ValueError(
                f"VL-PET: the saved tensors {_some(given - known)} fit no adapter of this model, so nothing was loaded"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def adapted(self, adapter_name=None):
        """List of :class:`petx.tuners.vlpet.report.Adapted` for ``adapter_name`` (default: the active one)."""
        return report.adapted(self, adapter_name)


def _some(keys):
    shown = ", ".join(sorted(keys)[:3])
    return f"{shown} and {len(keys) - 3} more" if len(keys) > 3 else shown
