"""Counting what is trained, and the rank at which one baseline is as large as another."""

from collections.abc import Callable
from typing import Any

from torch import nn

from petx import baselines
from petx.hosts import Host
from petx.options import option

ESTIMATORS = "information_bottleneck"  # attribute of a tuned model; trained with it, not saved with the adapter
# Settings that more than one baseline brings.
LORA_LR = (float, option(3e-3, "peak learning rate of LoRA", above=0))
LORA_RANK = (int | None, option(None, "rank of LoRA (default: as large as the method)", least=1))
ADAPTER_RANK = (int | None, option(None, "bottleneck of the adapters (default: as large as the method)", least=1))


def counts(host: type[Host], model: nn.Module) -> dict[str, int]:
    """Parameters ``trainable``, of these in the host's ``projector``, and ``total``.

    What PEFT keeps twice counts once; the information bottleneck's ``estimators`` are counted apart.
    """
    named = {name: p for name, p in model.named_parameters() if ".original_module." not in name}
    estimators = {name for name in named if name.startswith(f"{ESTIMATORS}.")}
    trained = {name: p.numel() for name, p in named.items() if p.requires_grad and name not in estimators}
    counted = {"trainable": sum(trained.values())}
    if host.projector is not None:
        counted["projector"] = sum(count for name, count in trained.items() if host.projector in name)
    counted["total"] = sum(p.numel() for name, p in named.items() if name not in estimators)
    counted["estimators"] = sum(named[name].numel() for name in estimators)
    return counted


def rank_of_size(wanted: int, size: Callable[[int], int], unit: int = 1) -> int:
    """The multiple of ``unit``, at least one, at which ``size(rank)``, linear in the rank, comes nearest to
    ``wanted``."""
    first, second = size(unit), size(2 * unit)
    return unit * max(1, round((wanted - first) / (second - first) + 1))


def read_for_size(settings: Any) -> set[str]:
    """What :func:`rank_as_large_as_the_method` reads of the settings that baselines own: all that makes the method's
    size."""
    method = baselines.find(settings.recipe, settings.recipe)
    return method.reads(settings) - {method.lr}


def rank_as_large_as_the_method(
    host: type[Host], model: nn.Module, settings: Any, size: Callable[[int], int], unit: int = 1
) -> int:
    """The rank, a multiple of ``unit``, at which ``size(rank)`` comes nearest to what the recipe's method trains of
    ``model``."""
    method = baselines.find(settings.recipe, settings.recipe)
    wanted = counts(host, method.sized(host, host.skeleton(model), settings))["trainable"]
    return rank_of_size(wanted, size, unit)
