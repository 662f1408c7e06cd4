"""How layers make their parameters and read them."""

from typing import Any

import torch
from torch import Tensor, nn

from petx._checks import check_strided, refuse

Device = torch.device | str | int | None


def place_of(owner: str, device: Any, dtype: Any) -> dict[str, Any]:
    """``device`` and ``dtype`` as torch's factories take them, after a check that they are such."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        refuse(owner, "dtype", "a floating torch.dtype or None", dtype)
    if device is not None and not isinstance(device, torch.device):
        try:
            torch.device(device)
        except (RuntimeError, TypeError, ValueError):
            refuse(owner, "device", "a torch.device, its name or None", device)
    return dict(device=device, dtype=dtype)


def parameters_of(module: nn.Module, *names: str) -> list[Any]:
    """Read from where a module keeps them, which is ten times as fast as its attributes; what is elsewhere (a
    parametrisation, a replica) is asked for by attribute."""
    held = module._parameters
    try:
        return [held[name] for name in names]
    except KeyError:
        return [getattr(module, name) for name in names]


def weight_and_bias(layer: nn.Module | None) -> tuple[Any, Any]:
    """Of a linear layer or None, in the same way."""
    if layer is None:
        return None, None
    held = layer._parameters
    if "weight" in held and "bias" in held:
        return held["weight"], held["bias"]
    return layer.weight, layer.bias


def check_input(owner: str, name: str, value: Any, features: int) -> None:
    """A floating tensor ``[..., features]``."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape[-1:] != (features,):
        refuse(owner, name, f"a floating tensor [..., {features}]", value)
    check_strided(owner, name, value)
