"""Checks of arguments at the public interface: one for every kind, in the user's words.

All raise ValueError that names the function or layer (``owner``), the argument, what came and what was wanted.
"""

import math
import numbers
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

import torch

LARGEST = torch.finfo(torch.float32).max  # of a number that kernels compute with: beyond it is infinity to them


def told(value: Any) -> str:
    """``value`` in a message: tensors by dtype and shape, other things as Python writes them, cut short."""
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def refuse_type(owner: str, name: str, wanted: str, value: Any) -> NoReturn:
    """Of what is no tensor: with its type."""
    got = "NoneType" if value is None else f"{type(value).__name__} {told(value)}"
    raise ValueError(f"{owner}: {name} must be {wanted}, got {got}")


def refuse(owner: str, name: str, wanted: str, value: Any) -> NoReturn:
    raise ValueError(f"{owner}: {name} must be {wanted}, got {told(value)}")


def is_number(value: Any) -> bool:
    """Whether ``value`` is a real number, Python's, numpy's or one that torch.compile traces; no bool, no tensor."""
    if type(value) in (float, int):
        return True
    return isinstance(value, numbers.Real | torch.SymFloat | torch.SymInt) and not isinstance(value, bool)


def is_integer(value: Any) -> bool:
    return type(value) is int or (isinstance(value, numbers.Integral | torch.SymInt) and not isinstance(value, bool))


def check_size(owner: str, **sizes: Any) -> None:
    """Every size is a positive integer that torch can hold."""
    for name, value in sizes.items():
        if not is_integer(value) or value < 1:
            refuse(owner, name, "a positive integer", value)
        if type(value) is int and value >= 2**63:
            refuse(owner, name, "a positive integer below 2^63", value)


def check_choice(owner: str, name: str, value: Any, known: Collection[Any]) -> None:
    """``value`` is one of ``known``."""
    if not isinstance(value, str | None) or value not in known:
        refuse(owner, name, f"one of {', '.join(map(repr, known))}", value)


def check_flag(owner: str, **flags: Any) -> None:
    for name, value in flags.items():
        if type(value) is not bool:
            refuse(owner, name, "True or False", value)


def check_probability(owner: str, **values: Any) -> None:
    for name, value in values.items():
        if not is_number(value) or not 0 <= value < 1:
            refuse(owner, name, "in [0, 1)", value)


def check_finite(owner: str, **values: Any) -> None:
    for name, value in values.items():
        if not is_number(value) or not abs(value) <= LARGEST:
            refuse(owner, name, _within("finite", value), value)


def check_positive(owner: str, **values: Any) -> None:
    for name, value in values.items():
        if not is_number(value) or not 0 < value <= LARGEST:
            refuse(owner, name, _within("positive and finite", value), value)


def check_not_negative(owner: str, **values: Any) -> None:
    for name, value in values.items():
        if not is_number(value) or not 0 <= value <= LARGEST:
            refuse(owner, name, _within("at least 0 and finite", value), value)


def _within(wanted: str, value: Any) -> str:
    return f"{wanted} in float32" if is_number(value) and LARGEST < abs(value) < math.inf else wanted


def shown_shape(shape: Sequence[int]) -> str:
    return "[" + ", ".join("any" if extent == -1 else str(extent) for extent in shape) + "]"


def check_floating(owner: str, name: str, value: Any, wanted: str, least_dims: int = 0) -> None:
    """``value`` is a floating tensor of at least so many dimensions; ``wanted`` says its shape."""
    check_tensor(owner, name, value, f"a tensor {wanted}")
    if value.dim() < least_dims or not value.is_floating_point():
        refuse(owner, name, f"floating {wanted}", value)


def check_shape(
    owner: str,
    name: str,
    tensor: Any,
    shape: Sequence[int],
    *,
    like: torch.Tensor | None = None,
    optional: bool = False,
) -> None:
    """``tensor`` is floating, has ``shape`` (-1: any extent) and lies on ``like``'s device."""
    if tensor is None:
        if optional:
            return
        refuse(owner, name, shown_shape(shape), None)
    if not isinstance(tensor, torch.Tensor):  # words are made for a refusal alone: a compiler cannot trace them
        refuse_type(owner, name, f"a tensor {shown_shape(shape)}", tensor)
    fits = tensor.dim() == len(shape) and all(w in (-1, g) for w, g in zip(shape, tensor.shape, strict=True))
    if not fits or not tensor.is_floating_point():
        refuse(owner, name, f"floating {shown_shape(shape)}", tensor)
    check_device(owner, name, tensor, like)


def check_tensor(owner: str, name: str, value: Any, wanted: str) -> None:
    """``value`` is a dense tensor; ``wanted`` says which."""
    if not isinstance(value, torch.Tensor):
        refuse_type(owner, name, wanted, value)
    check_strided(owner, name, value)


def check_strided(owner: str, name: str, tensor: torch.Tensor) -> None:
    """``tensor`` is dense."""
    if layout := other_layout(tensor):
        raise ValueError(f"{owner}: {name} must be a dense tensor (torch.strided), got a {layout} one")


def other_layout(tensor: torch.Tensor) -> str | None:
    """How ``tensor`` is laid out if it is not dense, as sparse, nested and mkldnn's are not; else None."""
    if tensor.is_nested:
        return "nested"
    return None if tensor.layout is torch.strided else str(tensor.layout)


def check_device(owner: str, name: str, tensor: torch.Tensor, like: torch.Tensor | None) -> None:
    """``tensor`` is dense and lies on ``like``'s device."""
    check_strided(owner, name, tensor)
    if like is not None and tensor.device != like.device:
        raise ValueError(f"{owner}: {name} must be on the device {like.device}, got {tensor.device}")


def check_mask(owner: str, name: str, mask: Any, shape: Sequence[int], like: torch.Tensor) -> None:
    """A mask, or None: a tensor of any dtype, read as non-zero."""
    if mask is None:
        return
    if not isinstance(mask, torch.Tensor):
        refuse_type(owner, name, f"a tensor {list(shape)} or None", mask)
    if list(mask.shape) != list(shape):
        raise ValueError(f"{owner}: {name} must be {list(shape)}, got {list(mask.shape)}")
    check_device(owner, name, mask, like)


def check_seed(owner: str, seed: Any, like: torch.Tensor) -> None:
    if seed is None:
        return
    fits = isinstance(seed, torch.Tensor) and seed.dtype == torch.int64 and seed.numel() == 1
    if not fits or seed.device != like.device:
        got = f"{told(seed)} on {seed.device}" if isinstance(seed, torch.Tensor) else told(seed)
        raise ValueError(f"{owner}: seed must be an int64 tensor of one element on {like.device}, got {got}")
