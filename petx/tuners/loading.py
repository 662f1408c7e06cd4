"""Putting a saved adapter on a model: every file is checked, and the model is as before if one does not fit."""

import json
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from petx.errors import UserError
from petx.tuners._common.model import AdapterModel

__all__ = ["load_adapter"]

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def methods() -> list[str]:
    """The methods of petx, as PEFT's registry has them."""
    tuners = PEFT_TYPE_TO_TUNER_MAPPING.items()
    return sorted(str(kind.value) for kind, tuner in tuners if issubclass(tuner, AdapterModel))


def load_adapter(
    model: nn.Module, folder: str | Path, adapter_name: str = "default", *, is_trainable: bool = False
) -> PeftModel:
    """The adapter saved in ``folder`` (by ``save_pretrained``) on ``model``, a plain model or one with other adapters.

    Does what ``PeftModel.from_pretrained`` and ``load_adapter`` do, and returns the PEFT model, with the adapter in
    place but, beside others, not yet active.

    Raises UserError, with ``model`` as it was, if a file is missing, truncated or altered, if the adapter was
    made by a method that is not petx's or for a model of another shape, or if tensors are missing, too many, of
    another shape or not finite.
    """
    folder = Path(folder)
    config, tensors = _config(folder), _tensors(folder)
    config.inference_mode = not is_trainable
    beside = isinstance(model, PeftModel)
    if beside and adapter_name in model.peft_config:
        raise UserError(f"the model has an adapter {adapter_name!r} already; give this one another name")
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    if beside:
        model.add_adapter(adapter_name, config)
        tuned = model
    else:
        tuned = get_peft_model(model, config, adapter_name=adapter_name)
    try:
        wanted = get_peft_model_state_dict(tuned, adapter_name=adapter_name)
        _compare(folder / TENSORS, tensors, wanted)
        set_peft_model_state_dict(tuned, tensors, adapter_name=adapter_name)
    except BaseException:
        if beside:
            model.delete_adapter(adapter_name)
        else:
            tuned.unload()
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        raise
    return tuned if is_trainable else tuned.eval()


def _config(folder: Path) -> PeftConfig:
    file = folder / CONFIG
    try:
        method = json.loads(file.read_text(encoding="utf-8"))["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is no saved adapter: cannot read {CONFIG} ({error!r})") from error
    if method not in methods():
        raise UserError(f"{file}: the adapter was made by {method!r}, and petx's methods are {', '.join(methods())}")
    try:
        return PeftConfig.from_pretrained(folder)
    except (TypeError, ValueError) as error:
        raise UserError(f"{file}: {error}") from error


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    file = folder / TENSORS
    if not file.is_file():
        raise UserError(f"{folder} is no saved adapter: {TENSORS} is not there")
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} is truncated or was altered: {error}") from error


def _compare(file: Path, tensors: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    for name in sorted(tensors.keys() ^ wanted.keys()):
        raise UserError(f"{file}: {name} is {'of no use to this adapter' if name in tensors else 'missing'}")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise UserError(f"{file}: {name} is {list(tensor.shape)}, wanted {list(wanted[name].shape)}")
        if not torch.isfinite(tensor).all():
            raise UserError(f"{file}: {name} has values that are not finite")
