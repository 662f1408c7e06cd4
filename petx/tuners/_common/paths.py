"""Paths of modules and names of tensors."""

from collections.abc import Collection, Iterable
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

__all__ = ["base_of", "covered", "parents", "plain", "plain_modules", "some"]


def covered(path: str, chosen: Iterable[str]) -> bool:
    """Whether ``path`` is one of the names in ``chosen``, or ends in one: PEFT's rule for ``modules_to_save``."""
    return any(path == name or path.endswith(f".{name}") for name in chosen)


def plain(path: str) -> str:
    """``path`` as it is without torch.compile, which wraps a module in one with a part ``_orig_mod``."""
    return ".".join(part for part in path.split(".") if part != "_orig_mod") if "_orig_mod" in path else path


def plain_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Plain path -> module, compiled ones unwrapped."""
    return {plain(path): module for path, module in model.named_modules()}


def parents(path: str) -> list[str]:
    """The paths of all modules around ``path``, outermost first."""
    return [path[:i] for i, letter in enumerate(path) if letter == "."]


def base_of(module: nn.Module | None) -> Any:
    """The frozen layer inside a tuner's layer; any other module is itself."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def some(keys: Collection[str]) -> str:
    """At most three of ``keys``, and how many more there are."""
    shown = ", ".join(sorted(keys)[:3])
    return f"{shown} and {len(keys) - 3} more" if len(keys) > 3 else shown
