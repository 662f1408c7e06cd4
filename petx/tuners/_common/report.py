"""What was adapted: the parts that every method's report has."""

from collections.abc import Callable
from typing import Any

from peft import PeftModel
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from petx.errors import UserError
from petx.tuners._common.layer import AdapterLayer

__all__ = ["adapter_named", "count", "last_line", "own_counter", "tuner_of"]


def tuner_of(model: nn.Module) -> Any:
    """The tuner in ``model``, a PEFT model or the tuner itself."""
    return model.base_model if isinstance(model, PeftModel) else model


def adapter_named(model: Any, adapter_name: str | None) -> str:
    """``adapter_name``, or the active adapter's if None; raises UserError if ``model`` has no such adapter."""
    if adapter_name is None and model.active_adapters:
        return model.active_adapters[0]
    if not isinstance(adapter_name, str) or adapter_name not in model.peft_config:
        known = ", ".join(model.peft_config) or "none"
        raise UserError(f"adapter_name: there is no adapter {adapter_name!r} in this model; there are: {known}")
    return adapter_name


def count(module: nn.Module | None) -> int:
    """Parameters in ``module``."""
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())


def own_counter(host: nn.Module) -> Callable[[nn.Module | None], int]:
    """Function that counts the frozen model's own parameters in a module of ``host``, without adapters and copies."""
    added = set()
    for module in host.modules():
        inside = None
        if isinstance(module, AdapterLayer):
            inside = module.adapters
        elif isinstance(module, AuxiliaryTrainingWrapper):
            inside = module.modules_to_save
        added |= {id(parameter) for parameter in (inside.parameters() if inside is not None else ())}
    return lambda module: 0 if module is None else sum(p.numel() for p in module.parameters() if id(p) not in added)


def last_line(counts: dict[str, Any]) -> str:
    return (
        f"  trainable {counts['trainable']:,} of {counts['total']:,} parameters ({counts['percent']:.4f} %); "
        "everything else is frozen"
    )
