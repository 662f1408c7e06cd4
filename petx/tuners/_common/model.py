"""The PEFT tuner: injection, merging, unloading and saved tensors, as far as they are alike in every method."""

import copy
from collections.abc import Sequence
from types import ModuleType
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from petx.errors import UserError
from petx.tuners._common.layer import AdapterLayer, refuse_several
from petx.tuners._common.paths import some

__all__ = ["AdapterModel", "check_host"]


class AdapterModel(BaseTuner):
    """Base of petx's tuners. A method says what it needs in the methods below that raise NotImplementedError.

    Everything that can be refused is refused by :meth:`_plan`, before the model is touched.
    """

    method: ClassVar[str]  # its name in messages
    tuner_layer_cls: ClassVar[type[AdapterLayer]]
    named_container: ClassVar[str]  # attribute whose keys are adapter names and whose values are modules
    report: ClassVar[ModuleType]  # has adapted, describe and parameter_counts

    # ---- what a method says ----

    def _plan(self, model: nn.Module, adapter_name: str, config: PeftConfig, without_memory: bool) -> Any:
        """What the adapter will consist of; fills ``config.host`` and ``config.target_modules``, changes nothing else.

        Raises UserError if ``config`` (resolved) does not fit ``model``.
        """
        raise NotImplementedError

    def _begin(self, adapter_name: str, plan: Any) -> None:
        """Called after the checks and before the layers are put in place."""

    def _connect(self, model: nn.Module) -> None:
        """Register the hooks."""
        raise NotImplementedError

    def _disconnect(self) -> None:
        """Remove the hooks."""
        raise NotImplementedError

    def _check_mergeable(self, adapter_name: str, whole: bool) -> None:
        """Raise UserError if the adapter cannot be folded into the weights; ``whole``: and nothing may be left."""
        raise NotImplementedError

    def _merge(self, adapter_name: str, safe_merge: bool) -> None:
        """Fold the adapter into the frozen weights."""
        raise NotImplementedError

    def _own_tensors(self, adapter_name: str) -> dict[str, torch.Tensor]:
        """Name in this tuner's state dict -> tensor, of all that belongs to one adapter."""
        raise NotImplementedError

    # ---- injection ----

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, low_cpu_mem_usage: bool = False, **kwargs: Any
    ) -> None:
        config = self.peft_config[adapter_name]
        resolved = copy.copy(config)  # the user's configuration changes only once it is known to fit
        resolved.resolve(self.get_model_config(model).get("model_type"))
        self._planned = self._plan(model, adapter_name, resolved, low_cpu_mem_usage)
        vars(config).update(vars(resolved))
        self._begin(adapter_name, self._planned)
        self._disconnect()  # PEFT copies modules that are trained whole, and their hooks with them
        try:
            super().inject_adapter(model, adapter_name, *args, low_cpu_mem_usage=low_cpu_mem_usage, **kwargs)
        finally:
            del self._planned
            self._connect(model)

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict) -> PeftConfig:
        return peft_config  # inject_adapter did it, with the model at hand

    @staticmethod
    def _check_target_module_exists(peft_config: PeftConfig, key: str) -> bool:
        return key in peft_config.target_modules

    def _layers(self, adapter_name: str | None = None) -> dict[str, AdapterLayer]:
        """Path -> layer, of all layers or of those that have ``adapter_name``."""
        return {
            path: module
            for path, module in self.model.named_modules()
            if isinstance(module, self.tuner_layer_cls) and (adapter_name is None or adapter_name in module.adapters)
        }

    # ---- PEFT's operations ----

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Make one adapter the active one; UserError for several."""
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        refuse_several(self.tuner_layer_cls, names)
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    def merge_adapter(self, adapter_names: Sequence[str] | None = None, safe_merge: bool = False) -> None:
        """Fold one adapter (default: the active one) into the frozen weights; :meth:`unmerge_adapter` takes it out.

        Raises UserError, with nothing changed, if that is not exact or if another adapter is merged.
        """
        names = self._names(adapter_names)
        merged = self._merged()
        refuse_several(self.tuner_layer_cls, sorted({*names, *merged}))
        for name in names:
            if name in merged:
                continue
            self._check_mergeable(name, whole=False)
            self._check_merge_allowed()
            with torch.no_grad():
                self._merge(name, safe_merge)

    def _names(self, adapter_names: Sequence[str] | None) -> list[str]:
        names = self.active_adapters if adapter_names is None else list(adapter_names)
        for name in names:
            if name not in self.peft_config:
                raise UserError(f"there is no adapter {name!r} in this model; there are: {', '.join(self.peft_config)}")
        return names

    def _merged(self) -> set[str]:
        return {name for layer in self._layers().values() for name in layer.merged_adapters}

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> nn.Module:
        if merge:
            for name in self._names(adapter_names):
                self._check_mergeable(name, whole=True)
            self.merge_adapter(adapter_names, safe_merge)
        self._disconnect()
        return super()._unload_and_optionally_merge(False, progressbar, safe_merge, adapter_names)

    # ---- saved tensors ----

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        inside = f".{cls.named_container}."
        if f"{inside}{adapter_name}." in key:
            return key.replace(f"{inside}{adapter_name}.", inside, 1)
        return super()._remove_adapter_name_from_key(key, adapter_name)

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any) -> None:
        """Refuse a state dict that has a part of an adapter, or tensors that do not fit: PEFT would load what fits."""
        given = {key for key in state_dict if key.startswith(prefix) and f".{self.prefix}" in f".{key}"}
        known = set()
        for name in self.peft_config:
            own = {f"{prefix}{key}": tensor for key, tensor in self._own_tensors(name).items()}
            if given & own.keys() and own.keys() - given:
                raise UserError(
                    f"{self.method} adapter {name!r}: the saved tensors lack {some(own.keys() - given)}, so nothing "
                    "was loaded"
                )
            for key in sorted(given & own.keys()):
                if state_dict[key].shape != own[key].shape:
                    raise UserError(
                        f"{self.method} adapter {name!r}: {key} is {list(state_dict[key].shape)} in the saved tensors "
                        f"and {list(own[key].shape)} in the model, so nothing was loaded"
                    )
            known |= own.keys()
        if given - known:
            raise UserError(
                f"{self.method}: the saved tensors {some(given - known)} fit no adapter of this model, so nothing was "
                "loaded"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def adapted(self, adapter_name: str | None = None) -> list[Any]:
        """The places that ``adapter_name`` (default: the active one) adapts, as the method's ``report.Adapted``."""
        return self.report.adapted(self, adapter_name)


def check_host(method: str, facts: dict[str, Any], config: PeftConfig) -> dict[str, Any]:
    """``facts`` about a model, what an adapter's tensors depend on; UserError if ``config`` was made for others."""
    differing = [key for key in facts if key != "model_type" and config.host and config.host.get(key) != facts[key]]
    if differing:
        was, now = ({key: some.get(key) for key in ("model_type", *differing)} for some in (config.host, facts))
        raise UserError(
            f"{method}: this adapter or configuration was made for another model: {was}; this one has {now}"
        )
    return facts
