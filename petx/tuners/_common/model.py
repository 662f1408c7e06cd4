"""The PEFT tuner: injection, merging, unloading and saved tensors, as far as they are alike in every method."""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from petx.errors import UserError
from petx.tuners._common.layer import AdapterLayer, refuse_several
from petx.tuners._common.mixed import BASE, Rows, count_of, trained_whole
from petx.tuners._common.packed import keep_differentiable
from petx.tuners._common.paths import covered, plain, some
from petx.tuners._common.sizes import check_memory

__all__ = ["AdapterModel", "check_host"]

# What PEFT adds to modules_to_save of classifiers and readers, whichever of them a model has.
HEADS = ("classifier", "score", "qa_outputs")


class AdapterModel(BaseTuner):
    """Base of petx's tuners. A method says what it needs in the methods below that raise NotImplementedError.

    Everything that can be refused is refused by :meth:`_plan`, before the model is touched.
    """

    method: ClassVar[str]  # its name in messages
    tuner_layer_cls: type[AdapterLayer]
    named_container: ClassVar[str]  # attribute whose keys are adapter names and whose values are modules
    report: ClassVar[ModuleType]  # has adapted, describe and parameter_counts

    # ---- what a method says ----

    @staticmethod
    def _plan(model: nn.Module, config: Any) -> Any:
        """What the adapter will consist of; fills ``config.host`` and ``config.target_modules``, changes nothing else.

        Raises UserError if ``config`` (resolved) does not fit ``model``.
        """
        raise NotImplementedError

    @staticmethod
    def _tensors(model: nn.Module, config: Any, plan: Any) -> dict[str, torch.Tensor]:
        """Saved name, less ``base_model.``, -> tensor without memory, of the method's own tensors."""
        raise NotImplementedError

    def _begin(self, model: nn.Module, adapter_name: str, config: Any, plan: Any, without_memory: bool) -> None:
        """The last checks, with nothing changed if one fails; then what must be there before the layers."""

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
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
    ) -> None:
        config: Any = self.peft_config[adapter_name]
        if adapter_name == BASE:
            raise UserError(f"{self.method}: {BASE!r} stands for the frozen model in adapter_names; take another name")
        resolved = copy.copy(config)  # the user's configuration changes only once it is known to fit
        resolved.resolve(self.get_model_config(model).get("model_type"))
        plan = self._plan(model, resolved)
        known = [plain(path) for path, _ in model.named_modules()]
        for name in config.modules_to_save or ():
            if name not in HEADS and not any(covered(path, [name]) for path in known):
                raise UserError(f"{self.method}: modules_to_save names {name!r}, and {type(model).__name__} has none")
        check_memory(self.method, self._tensors(model, resolved, plan))
        if not resolved.inference_mode:
            keep_differentiable(self.method, model)
        self._begin(model, adapter_name, resolved, plan, low_cpu_mem_usage)
        vars(config).update(vars(resolved))
        self._planned = plan
        self._disconnect()  # PEFT copies modules that are trained whole, and their hooks with them
        saved = config.modules_to_save
        try:
            config.modules_to_save = _as_compiled(model, saved)
            super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict)
        finally:
            config.modules_to_save = saved
            del self._planned
            self._connect(model)
        config.told = self.report.describe(self, adapter_name)

    @classmethod
    def expected(cls, model: nn.Module, config: PeftConfig) -> dict[str, torch.Tensor]:
        """Saved name -> tensor without memory, of the method's own tensors of an adapter on the frozen ``model``.

        Raises UserError if ``config`` does not fit it; ``model`` and ``config`` stay as they are.
        """
        resolved: Any = copy.copy(config)
        resolved.resolve(cls.get_model_config(model).get("model_type"))
        tensors = cls._tensors(model, resolved, cls._plan(model, resolved))
        return {f"base_model.{name}": tensor for name, tensor in tensors.items()}

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict) -> PeftConfig:
        return peft_config  # inject_adapter did it, with the model at hand

    @staticmethod
    def _check_target_module_exists(peft_config: Any, key: str) -> bool:
        return plain(key) in peft_config.target_modules

    def _layers(self, adapter_name: str | None = None) -> dict[str, Any]:
        """Path -> layer of :attr:`tuner_layer_cls`, of all layers or of those that have ``adapter_name``."""
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
        super().set_adapter(names, inference_mode=inference_mode)

    def merge_adapter(self, adapter_names: str | Sequence[str] | None = None, safe_merge: bool = False) -> None:
        """Fold the active adapter into the frozen weights; :meth:`unmerge_adapter` takes it out.

        ``adapter_names`` is its name, or a list of it. Raises UserError, with nothing changed, if that is not exact, if
        the base is quantised, if another adapter is merged, or if the named one is not active: what is not folded (the
        modules that are trained whole, experts) works for the active adapter.
        """
        names, merged = self._names(adapter_names), self._merged()
        refuse_several(self.tuner_layer_cls, sorted({*names, *merged}))
        for name in names:
            if name in merged:
                warnings.warn("All adapters are already merged, nothing to do.", stacklevel=2)
                continue
            self._check_mergeable(name, whole=False)
            self._check_merge_allowed()
            with torch.inference_mode(False), torch.no_grad():
                self._merge(name, safe_merge)

    def _names(self, adapter_names: str | Sequence[str] | None) -> list[str]:
        if adapter_names is None:
            return list(self.active_adapters)
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        for name in names:
            if name not in self.peft_config:
                raise UserError(f"there is no adapter {name!r} in this model; there are: {', '.join(self.peft_config)}")
        refuse_several(self.tuner_layer_cls, names)
        for name in names:
            if name not in self.active_adapters:
                raise UserError(
                    f"{self.method} adapter {name!r} is not the active one, and what is not folded into weights works "
                    f"for {', '.join(map(repr, self.active_adapters)) or 'none'}; call set_adapter({name!r}) first"
                )
        return names

    def _merged(self) -> set[str]:
        return {name for layer in self._layers().values() for name in layer.merged_adapters}

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> Any:
        if merge:
            merged = self._merged()
            for name in self._names(adapter_names):
                if name not in merged:
                    self._check_mergeable(name, whole=True)
            if not merged:
                self.merge_adapter(adapter_names, safe_merge)
        else:
            self.unmerge_adapter()
        self._disconnect()
        unload: Any = super()._unload_and_optionally_merge  # which says None and returns the model
        return unload(False, progressbar, safe_merge, adapter_names)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, AuxiliaryTrainingWrapper):  # unloading: its copy or the original, as it is
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def restore(self) -> nn.Module:
        """The frozen model as it was before any adapter: its own layers, and nothing that was trained."""
        self.unmerge_adapter()
        self._disconnect()
        inside = [(path, m) for path, m in self.model.named_modules() if isinstance(m, AuxiliaryTrainingWrapper)]
        layers = [(path, layer.base_layer) for path, layer in self._layers().items()]
        for path, own in [*layers, *((path, wrapper.original_module) for path, wrapper in inside)]:
            parent, _, name = path.rpartition(".")
            setattr(self.model.get_submodule(parent), name, own)
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        return self.model

    # ---- what PEFT offers for other methods ----

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refused: neither method is linear in its adapters' weights."""
        raise UserError(f"{self.method}: add_weighted_adapter would not be exact: {self.tuner_layer_cls.one_at_a_time}")

    # ---- batches of several adapters ----

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        names = kwargs.pop("adapter_names", None)
        if names is None:
            yield
            return
        rows = self._checked_rows(names)
        with ExitStack() as stack:
            count = count_of(({"inputs": args[0]} if args else {}) | kwargs)
            if count is not None:
                rows.check(count)  # here, since generate repeats them by its beams
            else:  # a forward whose inputs PEFT does not pass on to this

                def check(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
                    count = count_of({"input_ids": args[0]} if args else kwargs)
                    if count is not None:
                        rows.check(count)

                stack.callback(self.model.register_forward_pre_hook(check, with_kwargs=True).remove)
            self._enter_mixed(stack, rows)
            yield

    def _checked_rows(self, names: Sequence[str]) -> Rows:
        if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
            raise UserError(f"adapter_names must be a list of one name for each row, got {names!r}")
        unknown = sorted({*names} - {BASE} - self.peft_config.keys())
        if unknown:
            raise UserError(
                f"adapter_names: there is no adapter {', '.join(map(repr, unknown))}; there are: "
                f"{', '.join(self.peft_config)}, and {BASE!r} for the frozen model"
            )
        if self.training:
            raise UserError("adapter_names is for inference; call eval() first")
        if self._merged():
            raise UserError("adapter_names cannot be used while an adapter is merged; call unmerge_adapter() first")
        return Rows(names)

    def _enter_mixed(self, stack: ExitStack, rows: Rows) -> None:
        """Make every row be computed by its adapter until ``stack`` ends."""
        for module in self.model.modules():
            if isinstance(module, AuxiliaryTrainingWrapper):
                stack.enter_context(trained_whole(module, rows))

    # ---- saved tensors ----

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        key, inside = plain(key), f".{cls.named_container}."
        if f"{inside}{adapter_name}." in key:
            return key.replace(f"{inside}{adapter_name}.", inside, 1)
        return super()._remove_adapter_name_from_key(key, adapter_name)

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any) -> None:
        """Refuse a state dict that has a part of an adapter, or tensors that do not fit: PEFT would load what fits."""
        given = {key for key in state_dict if key.startswith(prefix) and f".{self.prefix}" in f".{key}"}
        known: set[str] = set()
        for name in self.peft_config:
            own = {f"{prefix}{key}": tensor for key, tensor in self._own_tensors(name).items()}
            if given & own.keys() and own.keys() - given:
                raise UserError(
                    f"{self.method} adapter {name!r}: the saved tensors lack {some(own.keys() - given)}, so nothing "
                    "was loaded (petx.tuners.load_adapter with strict=False loads what fits)"
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


def _as_compiled(model: nn.Module, names: list[str] | None) -> list[str] | None:
    """``names`` of modules as ``model`` has them, some of whose modules may be compiled."""
    paths = [path for path, _ in model.named_modules()]
    if names is None or not any("_orig_mod" in path for path in paths):
        return names
    return [path for path in paths if "_orig_mod" != path.rpartition(".")[2] and covered(plain(path), names)]


def check_host(method: str, facts: dict[str, Any], config: Any) -> dict[str, Any]:
    """``facts`` about a model, what an adapter's tensors depend on; UserError if ``config`` was made for others."""
    differing = [key for key in facts if key != "model_type" and config.host and config.host.get(key) != facts[key]]
    if differing:
        was, now = ({key: some.get(key) for key in ("model_type", *differing)} for some in (config.host, facts))
        raise UserError(
            f"{method}: this adapter or configuration was made for another model: {was}; this one has {now}"
        )
    return facts
