"""Putting a saved adapter on a model: every file is checked, and the model is as before if one does not fit."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import AuxiliaryTrainingWrapper, PeftType
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from petx.errors import UserError
from petx.tuners._common.model import AdapterModel
from petx.tuners._common.paths import plain

__all__ = ["load_adapter"]

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def methods() -> list[str]:
    """The methods of petx, as PEFT's registry has them."""
    tuners = PEFT_TYPE_TO_TUNER_MAPPING.items()
    return sorted(str(kind.value) for kind, tuner in tuners if issubclass(tuner, AdapterModel))


def load_adapter(
    model: nn.Module,
    folder: str | Path,
    adapter_name: str = "default",
    *,
    is_trainable: bool = False,
    strict: bool = True,
) -> PeftModel:
    """The adapter saved in ``folder`` (by ``save_pretrained``) on ``model``, a plain model or one with other adapters.

    Does what ``PeftModel.from_pretrained`` and ``load_adapter`` do, and returns the PEFT model, with the adapter in
    place but, beside others, not yet active.

    Raises UserError, with ``model`` as it was, if a file is missing, truncated or altered, if the adapter was
    made by a method that is not petx's or for a model of another shape, or if tensors are missing, too many, of
    another shape or not finite. With ``strict=False`` tensors that are missing keep their first values, those that are
    too many or of another shape are left out, and a warning names all of them.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"load_adapter: model must be a torch module, got {type(model).__name__}")
    if not isinstance(folder, str | os.PathLike):
        raise UserError(f"load_adapter: folder must be a path, got {folder!r}")
    if not isinstance(adapter_name, str) or not adapter_name:
        raise UserError(f"load_adapter: adapter_name must be a name, got {adapter_name!r}")
    for name, flag in (("is_trainable", is_trainable), ("strict", strict)):
        if not isinstance(flag, bool):
            raise UserError(f"load_adapter: {name} must be True or False, got {flag!r}")
    folder = Path(folder)
    config, tensors = _config(folder), _tensors(folder)
    config.inference_mode = not is_trainable
    beside = model if isinstance(model, PeftModel) else None
    if beside is not None and adapter_name in beside.peft_config:
        raise UserError(f"the model has an adapter {adapter_name!r} already; give this one another name")
    file = folder / TENSORS
    tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING[PeftType(config.peft_type)]
    _check_finite(file, tensors)
    if strict:  # what the header says is compared before anything is built
        own = {name: tensor for name, tensor in tensors.items() if f".{tuner.prefix}" in name}
        _refuse_misfits(file, own, tuner.expected(model if beside is None else beside.get_base_model(), config))
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    tuned: Any
    if beside is not None:
        beside.add_adapter(adapter_name, config)
        tuned = beside
    else:
        _name_base_as_loaded(config, model)
        tuned = get_peft_model(model, config, adapter_name=adapter_name)
    try:
        wanted = get_peft_model_state_dict(tuned, adapter_name=adapter_name)
        if strict:
            _refuse_misfits(file, tensors, wanted)
        else:
            tensors = _what_fits(file, tensors, wanted)
        set_peft_model_state_dict(tuned, _as_compiled(tuned, tensors), adapter_name=adapter_name)
    except BaseException:
        if beside is not None:
            beside.delete_adapter(adapter_name)
        else:
            tuned.base_model.restore()
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        raise
    return tuned if is_trainable else tuned.eval()


def _name_base_as_loaded(config: PeftConfig, model: nn.Module) -> None:
    """Let ``config`` spell its base model's folder as ``model`` was loaded by, lest PEFT warn of another model."""
    named, loaded = config.base_model_name_or_path, model.__dict__.get("name_or_path")
    if not isinstance(named, str) or not isinstance(loaded, str):
        return
    if os.path.isdir(named) and os.path.isdir(loaded) and os.path.samefile(named, loaded):
        config.base_model_name_or_path = loaded


def _config(folder: Path) -> PeftConfig:
    file = folder / CONFIG
    if not folder.is_dir():
        raise UserError(
            f"load_adapter: folder must be that of a saved adapter, and {str(folder)!r} is no folder here; one of the "
            "hub is fetched first, by huggingface_hub.snapshot_download"
        )
    try:
        method = json.loads(file.read_text(encoding="utf-8"))["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is no saved adapter: cannot read {CONFIG} ({error!r})") from error
    if method not in methods():
        raise UserError(f"{file}: the adapter was made by {method!r}, and petx's methods are {', '.join(methods())}")
    try:
        return PeftConfig.from_pretrained(str(folder))
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: {error}") from error


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    file = folder / TENSORS
    if not file.is_file() and (folder / "adapter_model.bin").is_file():
        raise UserError(
            f"{folder}: adapter_model.bin is a pickle, which can run code and is not read; save the adapter with "
            f"safe_serialization=True, which writes {TENSORS}"
        )
    if not file.is_file():
        raise UserError(f"{folder} is no saved adapter: {TENSORS} is not there")
    try:
        with open(file, "rb"):  # safetensors calls a file that may not be read missing
            pass
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} is truncated or was altered: {error}") from error


def _check_finite(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise UserError(f"{file}: {name} is {tensor.dtype}, wanted a floating type")
        if not torch.isfinite(tensor.float() if tensor.itemsize == 1 else tensor).all():
            raise UserError(f"{file}: {name} has values that are not finite")


def _misfits(tensors: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> dict[str, str]:
    """Name -> what is wrong with it, in words."""
    found = {
        name: f"is {'of no use to this adapter' if name in tensors else 'missing'}"
        for name in sorted(tensors.keys() ^ wanted.keys())
    }
    for name in tensors.keys() & wanted.keys():
        if tensors[name].shape != wanted[name].shape:
            found[name] = f"is {list(tensors[name].shape)}, wanted {list(wanted[name].shape)}"
    return found


def _refuse_misfits(file: Path, tensors: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    for name, why in _misfits(tensors, wanted).items():
        raise UserError(f"{file}: {name} {why}")


def _what_fits(
    file: Path, tensors: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    misfits = _misfits(tensors, wanted)
    if misfits.keys() >= wanted.keys():
        raise UserError(f"{file}: no tensor fits this adapter")
    if misfits:
        report = "; ".join(f"{name} {why}" for name, why in misfits.items())
        warnings.warn(
            f"{file}: {len(misfits)} tensors were left out or keep their first values: {report}", stacklevel=3
        )
    return wanted | {name: tensor for name, tensor in tensors.items() if name not in misfits}


def _as_compiled(tuned: PeftModel, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``tensors`` with the names that PEFT wants for modules trained whole inside compiled ones."""
    inside = [path for path, module in tuned.named_modules() if isinstance(module, AuxiliaryTrainingWrapper)]
    renamed = {plain(path): path for path in inside if path != plain(path)}
    return {
        next(
            (f"{path}.{key.removeprefix(f'{own}.')}" for own, path in renamed.items() if key.startswith(f"{own}.")), key
        ): t
        for key, t in tensors.items()
    }
