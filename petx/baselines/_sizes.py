"""Counting what is trained, and the rank at which one baseline is as large as another."""

from collections.abc import Callable

from torch import nn

from petx.hosts import Host

ESTIMATORS = "information_bottleneck"  # attribute of a tuned model; trained with it, not saved with the adapter


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


def rank_of_size(wanted: int, size: Callable[[int], int]) -> int:
    """The rank, at least 1, at which ``size(rank)``, linear in the rank, comes nearest to ``wanted``."""
    first, second = size(1), size(2)
    return max(1, round((wanted - first) / (second - first) + 1))
