"""Modules whose weights FSDP holds: gathered for a unit's own pass, and in shards (DTensors) outside of it."""

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from petx.errors import UserError

__all__ = ["in_shards", "is_managed", "refuse_shards"]


def is_managed(module: nn.Module) -> bool:
    """Whether FSDP holds the weights of ``module``, of either version.

    What reads weights of several units at once then has to read its own alone: the others may be in shards, and their
    gradients are summed over the processes as soon as their own unit's backward is over.
    """
    return "_is_fsdp_managed_module" in module.__dict__


def in_shards(tensors: Iterable[Any]) -> bool:
    """Whether any of ``tensors`` is a shard now."""
    kinds = sys.modules.get("torch.distributed.tensor")  # imported by who shards, and slow to import
    return kinds is not None and any(isinstance(tensor, kinds.DTensor) for tensor in tensors)


def refuse_shards(method: str, where: str, named: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raise UserError if a tensor of ``named``, which is read at ``where``, is a shard there."""
    for name, tensor in named:
        if in_shards([tensor]):
            raise UserError(
                f"{method}: {name} {list(tensor.shape)} is in shards where {where} reads it: FSDP's wrap policy split "
                "the adapter, or the model inside the wrapper was called. Let it wrap whole layers of the host "
                "(fsdp_config: auto_wrap_policy TRANSFORMER_BASED_WRAP, with the class of the host's layers as "
                "transformer_layer_cls_to_wrap; with torch alone fully_shard on each of them, then on the model)"
            )
