"""What the checks of the public functions share: autocast, shapes, devices, in the user's words."""

import math

import torch

GATES = ("none", "soft", "hard", "sigmoid")


def checked_shape(operation, name, tensor, shape, *, like=None, optional=False):
    """Raise ValueError unless ``tensor`` is floating, has ``shape`` (-1: any extent) and lies on ``like``'s device."""
    if tensor is None:
        if optional:
            return
        raise ValueError(f"{operation}: {name} must be {_shown(shape)}, got None")
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"{operation}: {name} must be a tensor {_shown(shape)}, got {type(tensor).__name__}")
    fits = tensor.dim() == len(shape) and all(w in (-1, g) for w, g in zip(shape, tensor.shape, strict=True))
    if not fits or not tensor.is_floating_point():
        raise ValueError(
            f"{operation}: {name} must be floating {_shown(shape)}, got {tensor.dtype} {list(tensor.shape)}"
        )
    if like is not None and tensor.device != like.device:
        raise ValueError(f"{operation}: {name} must be on the device {like.device}, got {tensor.device}")


def _shown(shape):
    return "[" + ", ".join("any" if extent == -1 else str(extent) for extent in shape) + "]"


def checked_choice(operation, name, value, known):
    """Raise ValueError unless ``value`` is one of ``known``."""
    if value not in known:
        raise ValueError(f"{operation}: {name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def checked_dropout(operation, dropout):
    if not 0 <= dropout < 1:
        raise ValueError(f"{operation}: dropout must be in [0, 1), got {dropout}")


def checked_finite(operation, **values):
    for name, value in values.items():
        if not abs(value) < math.inf:
            raise ValueError(f"{operation}: {name} must be finite, got {value}")


def checked_threshold(operation, threshold, gate, temperature, sizes, like):
    """The checks of a threshold gate: its kind, and a threshold of [1] or [size] where the gate needs one."""
    checked_choice(operation, "gate", gate, GATES)
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"{operation}: temperature must be positive and finite, got {temperature}")
    if threshold is not None and not isinstance(threshold, torch.Tensor):
        raise ValueError(f"{operation}: threshold must be a tensor or None, got {type(threshold).__name__}")
    if gate == "none":
        if threshold is not None:
            raise ValueError(f"{operation}: threshold is not used with gate='none'; got {list(threshold.shape)}")
        return
    wanted = " or ".join(str([size]) for size in dict.fromkeys((1, *sizes)))
    if threshold is None or threshold.dim() != 1 or threshold.shape[0] not in (1, *sizes):
        got = None if threshold is None else list(threshold.shape)
        raise ValueError(f"{operation}: threshold must be {wanted} with gate={gate!r}, got {got}")
    checked_shape(operation, "threshold", threshold, [-1], like=like)


def checked_mask(operation, name, mask, shape, device):
    if mask is None:
        return
    if list(mask.shape) != list(shape):
        raise ValueError(f"{operation}: {name} must be {list(shape)}, got {list(mask.shape)}")
    if mask.device != device:
        raise ValueError(f"{operation}: {name} must be on the device {device}, got {mask.device}")


def autocast_dtype(tensor):
    """The dtype that autocast asks for where it is on (float64 is left alone, as by torch's layers), else tensor's."""
    if torch.is_autocast_enabled(tensor.device.type) and tensor.dtype != torch.float64:
        return torch.get_autocast_dtype(tensor.device.type)
    return tensor.dtype


def cast(tensor, dtype):
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)


def checked_seed(operation, seed, device):
    if seed is None:
        return
    if not (
        isinstance(seed, torch.Tensor) and seed.dtype == torch.int64 and seed.numel() == 1 and seed.device == device
    ):
        got = f"{seed.dtype} {list(seed.shape)} on {seed.device}" if isinstance(seed, torch.Tensor) else repr(seed)
        raise ValueError(f"{operation}: seed must be an int64 tensor of one element on {device}, got {got}")


def operands(tensors, dtype):
    """``tensors`` as an operator takes them: of ``dtype`` and contiguous; None stays None."""
    return [t if t is None or t.dtype == dtype and t.is_contiguous() else _operand(t, dtype) for t in tensors]


def _operand(tensor, dtype):
    return cast(tensor, dtype).contiguous() if tensor.is_floating_point() else tensor  # for the operator to refuse
