"""What a run would build, built without memory first: what cannot work is told before the host's training begins."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from petx._memory import memory
from petx.errors import UserError
from petx.train import heads

# Bytes per parameter at least: weight, gradient and AdamW's two moments; a frozen one in half precision.
TRAINED, TRAINED_HALF, KEPT = 16, 8, 2


def check(run: Any) -> None:
    """Raise :class:`UserError` if the host, or an arm of ``run``, cannot be built or is beyond the machine's memory."""
    for _ in sketches(run):
        pass


def sketches(run: Any) -> Iterator[tuple[str, nn.Module]]:
    """Every arm of ``run`` with its model, without memory; none if the host's shape is not known yet.

    Raises :class:`UserError` as :func:`check`.
    """
    arms = {arm: run.baseline(arm) for arm in run.settings.all_arms}
    for arm, baseline in arms.items():
        host = host_sketch(run)
        if host is None:
            return
        if run.settings.host is None:
            _fits(run.settings, "the host", host, trained=True)
        tuned = _built(run.settings, f"arm {arm}", lambda: heads.built(baseline, run.host, host, run.settings))  # noqa: B023
        _fits(run.settings, f"arm {arm}", tuned)
        yield arm, tuned


def host_sketch(run: Any) -> nn.Module | None:
    """The host of ``run`` without memory; None if its shape is not known yet."""
    return _built(run.settings, "the host", lambda: run.host.sketch(run.settings, run.data))


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
    wanted = least_bytes(settings, model, trained)
    if wanted > there:
        total = sum(parameter.numel() for parameter in model.parameters())
        raise UserError(
            f"{what}: {total:,} parameters would take {wanted:,} bytes in training, and there are {there:,}"
            f"{_large(settings)}"
        )


def least_bytes(settings: Any, model: nn.Module, trained: bool = False) -> int:
    """What training ``model`` takes at least, without activations; ``trained``: all of it."""
    counted = [(parameter.numel(), trained or parameter.requires_grad) for parameter in model.parameters()]
    half = settings.host is not None and getattr(settings, "dtype", "float32") != "float32"
    return sum(count * ((TRAINED_HALF if half else TRAINED) if learns else KEPT) for count, learns in counted)


def _large(settings: Any) -> str:
    """The settings that make a model large, in words."""
    counts = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    known = ("steps", "seed", "images", "every", "workers")
    large = [f"{k}={v}" for k, v in counts.items() if type(v) is int and v >= 4096 and not k.endswith(known)]
    return f" ({', '.join(large)})" if large else ""
