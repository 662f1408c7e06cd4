"""What an adapter will take, found before anything is built: names and shapes of its tensors, and their bytes."""

import math
from collections.abc import Mapping

import torch

from petx._memory import memory
from petx.errors import UserError

__all__ = ["check_memory"]


def check_memory(method: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise UserError if ``tensors`` (made without memory) would not fit into the machine's."""
    there = memory()
    wanted = sum(math.prod(tensor.shape) * tensor.element_size() for tensor in tensors.values())
    if wanted > there:
        name, largest = max(tensors.items(), key=lambda item: math.prod(item[1].shape))
        raise UserError(
            f"{method}: the adapter's tensors would take {wanted:,} bytes, and this machine has {there:,}; the largest "
            f"is {name}, {list(largest.shape)}. Is the rank meant?"
        )
