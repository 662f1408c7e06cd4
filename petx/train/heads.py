"""Heads for retrieval, new to a host: trained in every tuned row, kept beside the adapter."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from petx.errors import UserError
from petx.hosts._retrieval import head_modules

HEADS = "heads.safetensors"


def built(baseline: Any, host: Any, model: nn.Module, settings: Any) -> nn.Module:
    """``model`` as ``baseline`` tunes it; if that trains anything, the host's heads for retrieval, too."""
    tuned = baseline.build(host, model, settings)
    if any(parameter.requires_grad for parameter in tuned.parameters()):
        for module in head_modules(tuned).values():
            module.requires_grad_(True)
    return tuned


def save(model: nn.Module, folder: str | Path) -> None:
    """Write the heads' tensors to ``folder``; nothing of a model without."""
    found = _tensors(model)
    if found:
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, Path(folder, HEADS))


@torch.no_grad()
def load(model: nn.Module, folder: str | Path) -> None:
    """Copy what :func:`save` wrote into ``model``; :class:`UserError` if it does not fit."""
    wanted = _tensors(model)
    if not wanted:
        return
    path = Path(folder, HEADS)
    try:
        saved = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} is damaged or cannot be read: {error}") from error
    for name in sorted(saved.keys() ^ wanted.keys()):
        raise UserError(f"{path}: {name} is {'not in this model' if name in saved else 'missing'}")
    for name, tensor in wanted.items():
        if saved[name].shape != tensor.shape:
            raise UserError(f"{path}: {name} is {list(saved[name].shape)}, wanted {list(tensor.shape)}")
        tensor.copy_(saved[name])


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    modules = head_modules(model).items()
    return {f"{name}.{part}": tensor for name, module in modules for part, tensor in module.state_dict().items()}
