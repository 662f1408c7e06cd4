"""What was adapted, for every tuner of petx: in words, as a list, in numbers."""

from peft import PeftModel

from petx.errors import UserError

__all__ = ["adapted", "describe", "parameter_counts"]


def _report(model):
    tuner = model.base_model if isinstance(model, PeftModel) else model
    found = getattr(type(tuner), "report", None)
    if found is None:
        raise UserError(f"wanted a model with an adapter of petx, got {type(tuner).__name__}")
    return found


def describe(model, adapter_name=None):
    """What an adapter (by default the active one) of ``model``, a PEFT model or its tuner, consists of, in words."""
    return _report(model).describe(model, adapter_name)


def adapted(model, adapter_name=None):
    """The same as a list of places: each has ``path``, ``kind``, ``parameters`` and what else the method tells."""
    return _report(model).adapted(model, adapter_name)


def parameter_counts(model, adapter_name=None):
    """Parameters by part, as the method's paper counts them; ends with trainable, total and percent."""
    return _report(model).parameter_counts(model, adapter_name)
