"""The PEFT tuner: puts the layers in place, holds what they share, and answers for PEFT's operations."""

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule

from petx.errors import UserError
from petx.tuners._common.layer import why_packed
from petx.tuners._common.mixed import Rows
from petx.tuners._common.model import AdapterModel, check_host
from petx.tuners._common.paths import base_of, plain
from petx.tuners.petal import report
from petx.tuners.petal.config import PetalConfig
from petx.tuners.petal.layer import PetalLayer
from petx.tuners.petal.parts import new_parts
from petx.tuners.petal.places import find_places
from petx.tuners.petal.plan import Plan
from petx.tuners.petal.running import ExpertPlace, RunningTower

__all__ = ["PetalModel"]

HALVES = (torch.float16, torch.bfloat16)
MERGED_AT_ONCE = 2**28  # bytes of weights in one call of cp_reconstruct


class PetalModel(AdapterModel):
    """PETAL for a vision-language model; use it through :func:`peft.get_peft_model` with a :class:`PetalConfig`.

    ``petal_shared`` holds what an adapter has once, keyed by its name; the mode vectors are in the layers.

    Raises UserError (a ValueError) before the model is touched if the configuration does not fit it.
    """

    prefix = "petal_"
    method = "PETAL"
    tuner_layer_cls = PetalLayer
    named_container = "petal_shared"
    uses_shared_state = True
    report: ClassVar[ModuleType] = report

    petal_shared: Any  # a ModuleDict of PetalParts
    _towers: dict[str, RunningTower]
    _expert_places: dict[str, ExpertPlace]

    # ---- injection ----

    @staticmethod
    def _plan(model: nn.Module, config: PetalConfig) -> Plan:
        plan = find_places(model, config)
        config.host = check_host("PETAL", _host(model, plan), config)
        config.target_modules = plan.paths
        return plan

    @staticmethod
    def _tensors(model: nn.Module, config: PetalConfig, plan: Plan) -> dict[str, torch.Tensor]:
        parts, modes = new_parts(plan, config, **_place(model, plan, True))
        own = {f"model.{path}.petal_mode": mode for path, mode in modes.items()}
        return own | {f"petal_shared.{key}": tensor for key, tensor in parts.state_dict().items()}

    def _begin(
        self, model: nn.Module, adapter_name: str, config: PetalConfig, plan: Plan, without_memory: bool
    ) -> None:
        for path in plan.paths if config.form == "explicit" else ():
            if reason := why_packed(base_of(model.get_submodule(path)).weight):
                raise UserError(f"PETAL: form='explicit' writes the weight of {path} out, but {reason}")
        parts, self._modes = new_parts(plan, config, **_place(model, plan, without_memory))
        _warn_of_zero_queries(model, plan)
        if "petal_shared" not in self._modules:
            self.petal_shared = nn.ModuleDict()
            self._towers, self._expert_places = {}, {}
        self.petal_shared[adapter_name] = parts
        for tower in plan.towers.values():
            self._towers.setdefault(tower.root, RunningTower(tower, self.petal_shared))
        for path, kind in plan.mixed.items():
            self._expert_places.setdefault(path, ExpertPlace(path, kind, self._towers))

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        held = self.petal_shared.parameters() if "petal_shared" in self._modules else ()
        others = [(parameter, parameter.requires_grad) for parameter in held]
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        del self._modes
        for parameter, flag in others:
            parameter.requires_grad_(flag)

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
        config: PetalConfig = peft_config
        layer: Any = target
        current_key = plain(current_key)
        if not isinstance(target, PetalLayer):
            groups = [group for tower in self._towers.values() for group in tower.groups]
            group = next(group for group in groups if current_key in group.spec.paths)
            layer = PetalLayer(target, group).train(target.training)
            layer._active_adapter = self.active_adapters
            self._replace_module(parent, target_name, layer, target)
            siblings = [getattr(parent, name) for name in group.spec.names]
            group.layers = [sibling for sibling in siblings if isinstance(sibling, PetalLayer)]
        layer.update_layer(adapter_name, self._modes[current_key], config.inference_mode)

    def _connect(self, model: nn.Module) -> None:
        for tower in self._towers.values():
            if tower.groups[0].layers:
                tower.connect(model)
        for place in self._expert_places.values():
            place.connect(model)

    def _disconnect(self) -> None:
        for tower in self._towers.values():
            tower.disconnect()
        for place in self._expert_places.values():
            place.disconnect()

    # ---- PEFT's operations, for what is shared too ----

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Make one adapter the active one; UserError for several."""
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        names = self.active_adapters
        for name, parts in self.petal_shared.items():
            parts.requires_grad_(name in names and not inference_mode)

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        super()._enable_adapter_layers(enabled)
        for name, parts in self.petal_shared.items():
            parts.requires_grad_(enabled and name in self.active_adapters)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        super().set_requires_grad(adapter_names, requires_grad)
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for name in names:
            if name in self.petal_shared:
                self.petal_shared[name].requires_grad_(requires_grad)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; if it was the active one, another takes its place."""
        was_active = adapter_name in self.active_adapters
        super().delete_adapter(adapter_name)
        del self.petal_shared[adapter_name]
        for name, parts in self.petal_shared.items():
            if was_active and name in self.active_adapters:  # PEFT makes its mode vectors trainable, too
                parts.requires_grad_(True)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        layers = list(self._layers(adapter_name).values())
        own = [*self.petal_shared[adapter_name].parameters(), *(layer.petal_mode[adapter_name] for layer in layers)]
        host = layers[0].get_base_layer().weight.dtype
        for parameter in own:
            if autocast_adapter_dtype and parameter.dtype in HALVES:
                parameter.data = parameter.data.float()
            elif not autocast_adapter_dtype and host in HALVES:
                parameter.data = parameter.data.to(host)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT calls this after it loaded tensors for parameters that were made without memory.
        layer = next(iter(self._layers(adapter_name).values()))
        parts = self.petal_shared[adapter_name]
        if not any(parameter.is_meta for parameter in parts.parameters()):
            parts.to(device or layer.get_base_layer().weight.device)

    # ---- batches of several adapters ----

    def _enter_mixed(self, stack: ExitStack, rows: Rows) -> None:
        for tower in self._towers.values():
            if tower.spec.kind != "qformer":
                raise UserError(
                    f"adapter_names is not supported in {tower.spec.root}: PETAL takes a batch of several adapters "
                    "apart at a Q-Former, and here a cache or images lie across rows. Call the model once per adapter"
                )
        for name in set(rows.names) & self.petal_shared.keys():
            if self.petal_shared[name].context.context == "batch_mean":
                raise UserError(f"adapter_names: the adapter {name!r} has context='batch_mean', which couples the rows")
        super()._enter_mixed(stack, rows)
        for tower in self._towers.values():
            stack.enter_context(tower.mixed(self.model, rows))

    # ---- merging ----

    def _check_mergeable(self, adapter_name: str, whole: bool) -> None:
        # Experts, residuals and context of a merged adapter go on as they are.
        if whole and (rest := report.unmergeable(self.petal_shared[adapter_name])):
            raise UserError(
                f"PETAL adapter {adapter_name!r} cannot become plain weights: {' and '.join(rest)} have no place in "
                "the frozen model. merge_adapter() folds the projections alone and keeps these working; an adapter "
                "with experts=0, query_transform=False and context='off' merges whole"
            )
        for path, layer in self._layers(adapter_name).items():
            if reason := layer.merge_obstacle(adapter_name):
                raise UserError(f"PETAL adapter {adapter_name!r} cannot be merged: at {path}, {reason}")

    def _merge(self, adapter_name: str, safe_merge: bool) -> None:
        """Fold the updates W' = W + gate(V M(p)ᵀ U) of all projections; alike ones in one call."""
        layers = self._layers(adapter_name).values()
        parts = self.petal_shared[adapter_name]
        alike: dict[tuple[Any, ...], list[PetalLayer]] = {}
        for layer in layers:
            weight, spec = layer.get_base_layer().weight, layer.group.spec
            key = (spec.factors, spec.out_features, weight.dtype, weight.device)
            alike.setdefault(key, []).append(layer)
        done: list[tuple[PetalLayer, torch.Tensor]] = []
        for (factors, *_), group in alike.items():
            weight = group[0].get_base_layer().weight
            count = max(1, MERGED_AT_ONCE // (weight.numel() * weight.element_size()))
            for some in (group[i : i + count] for i in range(0, len(group), count)):
                frozen = [layer.get_base_layer().weight for layer in some]
                weights = parts.written_out(factors, frozen, [layer.petal_mode[adapter_name] for layer in some])
                done += zip(some, weights, strict=True)
        if safe_merge and not all(weight.isfinite().all() for _, weight in done):
            raise UserError(f"PETAL adapter {adapter_name!r} would put non-finite values into the frozen weights")
        for layer, weight in done:
            layer.take(adapter_name, weight, layer.get_base_layer().bias)

    # ---- saved tensors ----

    def _own_tensors(self, adapter_name: str) -> dict[str, torch.Tensor]:
        own = {
            f"model.{path}.petal_mode.{adapter_name}": layer.petal_mode[adapter_name]
            for path, layer in self._layers(adapter_name).items()
        }
        shared = self.petal_shared[adapter_name].state_dict()
        return own | {f"petal_shared.{adapter_name}.{key}": tensor for key, tensor in shared.items()}


def _place(model: nn.Module, plan: Plan, without_memory: bool) -> dict[str, Any]:
    """Device and dtype of an adapter's tensors: those of the first adapted weight, but not in half precision."""
    weight = base_of(model.get_submodule(plan.paths[0])).weight
    place = {"device": "meta" if without_memory else weight.device}
    if not weight.is_floating_point():
        return place
    # PEFT wants float32 for a model in half precision; the first values are drawn in it.
    return place | {"dtype": torch.float32 if weight.dtype in HALVES else weight.dtype}


def _host(model: nn.Module, plan: Plan) -> dict[str, Any]:
    """What an adapter's tensors depend on in its model."""
    return {
        "model_type": getattr(getattr(model, "config", None), "model_type", None),
        "towers": {
            name: {
                "projections": len([path for group in tower.groups for path in group.paths]),
                "widths": [list(pair) for pair in sorted({(g.in_features, g.out_features) for g in tower.groups})],
                "layers": len(tower.layers),
            }
            for name, tower in plan.towers.items()
        },
        "experts": plan.width,
    }


def _warn_of_zero_queries(model: nn.Module, plan: Plan) -> None:
    queries = getattr(model, "query_tokens", None)
    qformer = any(tower.kind == "qformer" for tower in plan.towers.values())
    if qformer and queries is not None and not queries.is_meta and not queries.detach().any():
        warnings.warn(
            "PETAL: the model's query_tokens are all zero, as transformers creates them: without trained ones all "
            "queries are the same token, and tuning beside them learns little. Was a checkpoint loaded?",
            stacklevel=2,
        )
