"""Hosts: the frozen models that are tuned. One module each, with its class as ``HOST``; found by name or checkpoint."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from petx import _rooms
from petx.errors import UserError
from petx.hosts.base import Host

__all__ = ["Host", "bound", "find", "of_checkpoint", "of_method"]


def of_method(method: str) -> dict[str, type[Host]]:
    """``{name: host}`` of every host that ``method`` (``"vlpet"``, ``"petal"``) tunes."""
    found = {name: module.HOST for name, module in _rooms.modules(__name__).items()}
    return {name: host for name, host in found.items() if method in host.methods}


def find(name: str) -> type[Host]:
    """The host that the module ``petx/hosts/NAME.py`` defines."""
    return _rooms.modules(__name__)[name].HOST


def of_checkpoint(folder: str | Path, method: str) -> type[Host]:
    """The host in ``folder``, or of that hub name; :class:`UserError` if there is none that ``method`` tunes."""
    known = of_method(method).values()  # first, since importing them registers petx's own configurations
    try:
        kind = AutoConfig.from_pretrained(folder).model_type
    except (OSError, ValueError) as error:
        raise UserError(f"host: cannot load {str(folder)!r}: {error}") from error
    for host in known:
        if kind in host.model_types:
            return host
    raise UserError(f"host: {str(folder)!r} is a {kind!r} model; wanted {wanted(method)}")


def wanted(method: str) -> str:
    """The hosts of ``method`` in words, such as ``BART or T5``."""
    *others, last = [host.words for host in sorted(of_method(method).values(), key=lambda host: host.order)]
    return f"{', '.join(others)} or {last}" if others else last


def bound(model: Any, tokenizer: object) -> Host:
    """The host of ``model``, bound to its configuration and ``tokenizer``."""
    kind = model.config.model_type
    for module in _rooms.modules(__name__).values():
        if kind in module.HOST.model_types:
            return module.HOST(model.config, tokenizer)
    raise UserError(f"no host is known for a {kind!r} model")
