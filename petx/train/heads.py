"""Heads for retrieval, new to a host: trained in every tuned row, kept beside the adapter."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from petx.hosts._retrieval import head_modules
from petx.train import checkpoints

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
        checkpoints.save_tensors(found, Path(folder, HEADS))


def load(model: nn.Module, folder: str | Path) -> None:
    """Copy what :func:`save` wrote into ``model``; :class:`UserError` if it does not fit."""
    wanted = _tensors(model)
    if wanted:
        checkpoints.load_tensors(wanted, Path(folder, HEADS), "not in this model")


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    modules = head_modules(model).items()
    return {f"{name}.{part}": tensor for name, module in modules for part, tensor in module.state_dict().items()}
