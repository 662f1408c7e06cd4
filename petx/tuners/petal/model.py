"""The PEFT tuner: puts the layers in place, holds what they share, and answers for PEFT's operations."""

import copy
import warnings

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from petx import functional
from petx.errors import UserError
from petx.tuners.petal import report
from petx.tuners.petal.hosts import base_of, find_places
from petx.tuners.petal.layer import PetalLayer, refuse_several
from petx.tuners.petal.parts import new_parts
from petx.tuners.petal.running import ExpertPlace, RunningTower

__all__ = ["PetalModel"]

HALVES = (torch.float16, torch.bfloat16)
MERGED_AT_ONCE = 2**28  # bytes of weights in one call of cp_reconstruct


class PetalModel(BaseTuner):
    """PETAL for a vision-language model; use it through :func:`peft.get_peft_model` with a :class:`PetalConfig`.

    ``petal_shared`` holds what an adapter has once, keyed by its name; the mode vectors are in the layers.

    Raises UserError (a ValueError) before the model is touched where the configuration does not fit it.
    """

    prefix = "petal_"
    tuner_layer_cls = PetalLayer
    uses_shared_state = True
    report = report

    # ---- injection ----

    def inject_adapter(self, model, adapter_name, *args, low_cpu_mem_usage=False, **kwargs):
        config = self.peft_config[adapter_name]
        resolved = copy.copy(config)  # the user's configuration changes only once it is known to fit
        resolved.resolve(self.get_model_config(model).get("model_type"))
        plan = find_places(model, resolved)
        resolved.host = _check_host(model, plan, config)
        parts, modes = new_parts(plan, resolved, **_place(model, plan, low_cpu_mem_usage))
        _warn_of_zero_queries(model, plan)
        resolved.target_modules = plan.paths
        vars(config).update(vars(resolved))

        if "petal_shared" not in self._modules:
            self.petal_shared = nn.ModuleDict()
            self._towers, self._expert_places = {}, {}
        others = {p: p.requires_grad for p in self.petal_shared.parameters()}
        self.petal_shared[adapter_name] = parts
        for tower in plan.towers.values():
            self._towers.setdefault(tower.root, RunningTower(tower, self.petal_shared))
        for path, kind in plan.mixed.items():
            self._expert_places.setdefault(path, ExpertPlace(path, kind, self._towers))
        self._modes = modes
        self._disconnect()  # PEFT copies modules that are trained whole, and their hooks with them
        try:
            super().inject_adapter(model, adapter_name, *args, low_cpu_mem_usage=low_cpu_mem_usage, **kwargs)
        finally:
            del self._modes
            self._connect(model)
        for parameter, flag in others.items():
            parameter.requires_grad_(flag)

    def _prepare_adapter_config(self, peft_config, model_config):
        return peft_config  # inject_adapter did it, with the model at hand

    @staticmethod
    def _check_target_module_exists(peft_config, key):
        return key in peft_config.target_modules

    def _create_and_replace(self, config, adapter_name, target, target_name, parent, current_key):
        layer = target
        if not isinstance(target, PetalLayer):
            groups = [group for tower in self._towers.values() for group in tower.groups]
            group = next(group for group in groups if current_key in group.spec.paths)
            layer = PetalLayer(target, group).train(target.training)
            layer._active_adapter = self.active_adapters
            self._replace_module(parent, target_name, layer, target)
            siblings = [getattr(parent, name) for name in group.spec.names]
            group.layers = [sibling for sibling in siblings if isinstance(sibling, PetalLayer)]
        layer.update_layer(adapter_name, self._modes[current_key], config.inference_mode)

    def _connect(self, model):
        for connected in (*self._towers.values(), *self._expert_places.values()):
            if isinstance(connected, ExpertPlace) or connected.groups[0].layers:
                connected.connect(model)

    def _disconnect(self):
        for connected in (*self._towers.values(), *self._expert_places.values()):
            connected.disconnect()

    def _layers(self):
        return {path: module for path, module in self.model.named_modules() if isinstance(module, PetalLayer)}

    # ---- PEFT's operations, for what is shared too ----

    def set_adapter(self, adapter_name, inference_mode=False):
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        refuse_several(names)
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        for name, parts in self.petal_shared.items():
            parts.requires_grad_(name in names and not inference_mode)

    def _enable_adapter_layers(self, enabled=True):
        super()._enable_adapter_layers(enabled)
        for name, parts in self.petal_shared.items():
            parts.requires_grad_(enabled and name in self.active_adapters)

    def set_requires_grad(self, adapter_names, requires_grad=True):
        super().set_requires_grad(adapter_names, requires_grad)
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for name in names:
            if name in self.petal_shared:
                self.petal_shared[name].requires_grad_(requires_grad)

    def delete_adapter(self, adapter_name):
        super().delete_adapter(adapter_name)
        del self.petal_shared[adapter_name]
        for name, parts in self.petal_shared.items():
            if name in self.active_adapters:
                parts.requires_grad_(True)

    def _cast_adapter_dtype(self, adapter_name, autocast_adapter_dtype=True):
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        layers = [layer for layer in self._layers().values() if adapter_name in layer.petal_mode]
        own = [*self.petal_shared[adapter_name].parameters(), *(layer.petal_mode[adapter_name] for layer in layers)]
        host = layers[0].get_base_layer().weight.dtype
        for parameter in own:
            if autocast_adapter_dtype and parameter.dtype in HALVES:
                parameter.data = parameter.data.float()
            elif not autocast_adapter_dtype and host in HALVES:
                parameter.data = parameter.data.to(host)

    def _move_adapter_to_device_of_base_layer(self, adapter_name, device=None):
        # PEFT calls this after it loaded tensors for parameters that were made without memory.
        layer = next(layer for layer in self._layers().values() if adapter_name in layer.petal_mode)
        parts = self.petal_shared[adapter_name]
        if not any(parameter.is_meta for parameter in parts.parameters()):
            parts.to(device or layer.get_base_layer().weight.device)

    # ---- merging ----

    def merge_adapter(self, adapter_names=None, safe_merge=False):
        """Fold the updates of all projections into their weights; experts, residuals and context go on as they are."""
        names = self.active_adapters if adapter_names is None else list(adapter_names)
        layers = self._layers()
        merged = {name for layer in layers.values() for name in layer.merged_adapters}
        refuse_several(sorted({*names, *merged}))
        for name in names:
            if name not in self.peft_config:
                raise UserError(f"there is no adapter {name!r} in this model; there are: {', '.join(self.peft_config)}")
            if name not in merged:
                self._check_merge_allowed()
                self._merge(name, [layer for layer in layers.values() if name in layer.petal_mode], safe_merge)

    @torch.no_grad()
    def _merge(self, name, layers, safe_merge):
        parts, alike = self.petal_shared[name], {}
        for layer in layers:
            weight, spec = layer.get_base_layer().weight, layer.group.spec
            if not weight.is_floating_point():
                raise UserError(f"PETAL: {spec.kind} in {spec.attention} has {weight.dtype} weights; cannot merge")
            key = (spec.factors, spec.out_features, weight.dtype, weight.device)
            alike.setdefault(key, []).append(layer)
        done = []
        for (factors, width, _, _), group in alike.items():
            weight = group[0].get_base_layer().weight
            count = max(1, MERGED_AT_ONCE // (weight.numel() * weight.element_size()))
            for some in (group[i : i + count] for i in range(0, len(group), count)):
                cores = parts.cores(factors, torch.stack([layer.petal_mode[name] for layer in some]))
                weights = functional.cp_reconstruct(
                    [layer.get_base_layer().weight for layer in some],
                    parts.factors[factors].u,
                    parts.factors[factors].v[str(width)],
                    cores,
                )
                done += zip(some, weights, strict=True)
        if safe_merge and not all(weight.isfinite().all() for _, weight in done):
            raise UserError(f"PETAL adapter {name!r} would put non-finite values into the frozen weights")
        for layer, weight in done:
            layer.take(weight, name)

    def _unload_and_optionally_merge(self, merge=True, progressbar=False, safe_merge=False, adapter_names=None):
        if merge:
            for name in self.active_adapters if adapter_names is None else adapter_names:
                if name in self.petal_shared and (rest := report.unmergeable(self.petal_shared[name])):
                    raise UserError(
                        f"PETAL adapter {name!r} cannot become plain weights: {' and '.join(rest)} have no place in "
                        "the frozen model. merge_adapter() folds the projections alone and keeps these working; an "
                        "adapter with experts=0, query_transform=False and context='off' merges whole"
                    )
            self.merge_adapter(adapter_names, safe_merge)
        self._disconnect()
        return super()._unload_and_optionally_merge(False, progressbar, safe_merge, adapter_names)

    # ---- saved tensors ----

    @classmethod
    def _remove_adapter_name_from_key(cls, key, adapter_name):
        inside = ".petal_shared."
        if f"{inside}{adapter_name}." in key:
            return key.replace(f"{inside}{adapter_name}.", inside, 1)
        return super()._remove_adapter_name_from_key(key, adapter_name)

    def _own_tensors(self, adapter_name, prefix):
        own = {
            f"{prefix}model.{path}.petal_mode.{adapter_name}": layer.petal_mode[adapter_name]
            for path, layer in self._layers().items()
            if adapter_name in layer.petal_mode
        }
        shared = self.petal_shared[adapter_name].state_dict()
        return own | {f"{prefix}petal_shared.{adapter_name}.{key}": tensor for key, tensor in shared.items()}

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Refuse a state dict that has a part of an adapter, or tensors that do not fit: PEFT would load what fits."""
        given = {key for key in state_dict if key.startswith(prefix) and (".petal_" in key)}
        known = set()
        for name in self.peft_config:
            own = self._own_tensors(name, prefix)
            if given & own.keys() and own.keys() - given:
                raise UserError(
                    f"PETAL adapter {name!r}: the saved tensors lack {_some(own.keys() - given)}, so nothing was loaded"
                )
            for key in sorted(given & own.keys()):
                if state_dict[key].shape != own[key].shape:
                    raise UserError(
                        f"PETAL adapter {name!r}: {key} is {list(state_dict[key].shape)} in the saved tensors and "
                        f"{list(own[key].shape)} in the model, so nothing was loaded"
                    )
            known |= own.keys()
        if given - known:
            raise UserError(
                f"PETAL: the saved tensors {_some(given - known)} fit no adapter of this model, so nothing was loaded"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def adapted(self, adapter_name=None):
        """List of :class:`petx.tuners.petal.report.Adapted` for ``adapter_name`` (default: the active one)."""
        return report.adapted(self, adapter_name)


def _some(keys):
    shown = ", ".join(sorted(keys)[:3])
    return f"{shown} and {len(keys) - 3} more" if len(keys) > 3 else shown


def _place(model, plan, without_memory):
    """Device and dtype of an adapter's tensors: those of the first adapted weight, but not in half precision."""
    weight = base_of(model.get_submodule(plan.paths[0])).weight
    place = {"device": "meta" if without_memory else weight.device}
    if not weight.is_floating_point():
        return place
    # PEFT wants float32 for a model in half precision; the first values are drawn in it.
    return place | {"dtype": torch.float32 if weight.dtype in HALVES else weight.dtype}


def _check_host(model, plan, config):
    """What an adapter's tensors depend on in its model; UserError where ``config`` was made for another one."""
    host = {
        "model_type": getattr(getattr(model, "config", None), "model_type", None),
        "towers": {
            name: {
                "projections": len([path for group in tower.groups for path in group.paths]),
                "widths": sorted({(group.in_features, group.out_features) for group in tower.groups}),
                "layers": len(tower.layers),
            }
            for name, tower in plan.towers.items()
        },
        "experts": plan.width,
    }
    for tower in host["towers"].values():
        tower["widths"] = [list(pair) for pair in tower["widths"]]
    differing = [key for key in host if key != "model_type" and config.host and config.host.get(key) != host[key]]
    if differing:
        was, now = ({key: facts.get(key) for key in ("model_type", *differing)} for facts in (config.host, host))
        raise UserError(f"PETAL: this adapter or configuration was made for another model: {was}; this one has {now}")
    return host


def _warn_of_zero_queries(model, plan):
    queries = getattr(model, "query_tokens", None)
    qformer = any(tower.kind == "qformer" for tower in plan.towers.values())
    if qformer and queries is not None and not queries.is_meta and not queries.detach().any():
        warnings.warn(
            "PETAL: the model's query_tokens are all zero, as transformers creates them: without trained ones all "
            "queries are the same token, and tuning beside them learns little. Was a checkpoint loaded?",
            stacklevel=2,
        )
