"""What a run would build, built without memory first: what cannot work is told before the host's training begins."""

import dataclasses
from typing import Any

import torch
from torch import nn

from petx._memory import memory
from petx.errors import UserError

# Bytes per parameter at least: weight, gradient and AdamW's two moments; a frozen one in half precision.
TRAINED, TRAINED_HALF, KEPT = 16, 8, 2


def check(run: Any) -> None:
    """Raise :class:`UserError` if the host, or an arm of ``run``, cannot be built or is beyond the machine's memory."""
    arms = {arm: run.baseline(arm) for arm in run.settings.all_arms}
    for arm, baseline in arms.items():
        host = _built(run.settings, "the host", lambda: run.host.sketch(run.settings, run.data))
        if host is None:
            return
        if run.settings.host is None:
            _fits(run.settings, "the host", host, trained=True)
        tuned = _built(run.settings, f"arm {arm}", lambda: baseline.build(run.host, host, run.settings))  # noqa: B023
        _fits(run.settings, f"arm {arm}", tuned)


def _built(settings: Any, what: str, build: Any) -> Any:
    try:
        with torch.device("meta"):
            return build()
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    except (ValueError, TypeError, RuntimeError, OverflowError, ZeroDivisionError) as error:
        raise UserError(f"{what} cannot be built of these settings{_large(settings)}: {error}") from error


def _fits(settings: Any, what: str, model: nn.Module, trained: bool = False) -> None:
    there = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else memory()
    counted = [(parameter.numel(), trained or parameter.requires_grad) for parameter in model.parameters()]
    half = settings.host is not None and getattr(settings, "dtype", "float32") != "float32"
    wanted = sum(count * ((TRAINED_HALF if half else TRAINED) if learns else KEPT) for count, learns in counted)
    if wanted > there:
        total = sum(count for count, _ in counted)
        raise UserError(
            f"{what}: {total:,} parameters would take {wanted:,} bytes in training, and there are {there:,}"
            f"{_large(settings)}"
        )


def _large(settings: Any) -> str:
    """The settings that make a model large, in words."""
    counts = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    known = ("steps", "seed", "images", "every", "workers")
    large = [f"{k}={v}" for k, v in counts.items() if type(v) is int and v >= 4096 and not k.endswith(known)]
    return f" ({', '.join(large)})" if large else ""
