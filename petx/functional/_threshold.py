"""The learnable threshold of PETAL's operations: its kinds and its check."""

from typing import Any

import torch

from petx._checks import check_choice, check_positive, check_shape, refuse_type

THRESHOLDS = ("none", "soft", "hard", "sigmoid")  # in the order of csrc/kernels/threshold_gate.h


def check_threshold(
    owner: str, threshold: Any, gate: Any, temperature: Any, sizes: tuple[int, ...], like: torch.Tensor
) -> None:
    """The kind of gate, its temperature, and a threshold of [1] or [size] if the gate needs one."""
    check_choice(owner, "gate", gate, THRESHOLDS)
    check_positive(owner, temperature=temperature)
    if threshold is not None and not isinstance(threshold, torch.Tensor):
        refuse_type(owner, "threshold", "a tensor or None", threshold)
    if gate == "none":
        if threshold is not None:
            raise ValueError(f"{owner}: threshold is not used with gate='none'; got {list(threshold.shape)}")
        return
    wanted = " or ".join(str([size]) for size in dict.fromkeys((1, *sizes)))
    if threshold is None or threshold.dim() != 1 or threshold.shape[0] not in (1, *sizes):
        got = None if threshold is None else list(threshold.shape)
        raise ValueError(f"{owner}: threshold must be {wanted} with gate={gate!r}, got {got}")
    check_shape(owner, "threshold", threshold, [-1], like=like)
