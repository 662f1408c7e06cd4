"""What was adapted, for every tuner of petx: in words, as a list, in numbers."""

from types import ModuleType
from typing import Any

from torch import nn

from petx.errors import UserError
from petx.tuners._common.model import AdapterModel
from petx.tuners._common.report import tuner_of

__all__ = ["adapted", "describe", "parameter_counts"]


def _report(model: nn.Module) -> ModuleType:
    tuner = tuner_of(model)
    if not isinstance(tuner, AdapterModel):
        raise UserError(f"model must be one with an adapter of petx, got {type(tuner).__name__}")
    return tuner.report


def describe(model: nn.Module, adapter_name: str | None = None) -> str:
    """What an adapter (by default the active one) of ``model``, a PEFT model or its tuner, consists of, in words.

    Raises UserError (a ValueError) for a model without an adapter of petx, and for a name that it does not have.
    """
    return _report(model).describe(model, adapter_name)


def adapted(model: nn.Module, adapter_name: str | None = None) -> list[Any]:
    """What :func:`describe` says as a list of places, each with ``path``, ``kind``, ``parameters`` and what else the
    method tells. Raises UserError as :func:`describe` does."""
    return _report(model).adapted(model, adapter_name)


def parameter_counts(model: nn.Module, adapter_name: str | None = None) -> dict[str, int | float | None]:
    """Parameters by part, as the method's paper counts them; ends with trainable, total and percent.

    Raises UserError as :func:`describe` does.
    """
    return _report(model).parameter_counts(model, adapter_name)
