"""Hosts: the frozen models that are tuned. One module each, with its class as ``HOST``; found by name or checkpoint."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig

from petx import _rooms
from petx.errors import UserError
from petx.files import damaged_files
from petx.hosts.base import Host

__all__ = ["Host", "bound", "check_files", "find", "load", "of_checkpoint", "of_method", "pretrained", "tokenizers"]


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
    config = _read(folder, lambda: AutoConfig.from_pretrained(folder))
    host = _of_config(config, known)
    if host is None:
        raise UserError(f"host: {str(folder)!r} is a {config.model_type!r} model; wanted {wanted(method)}")
    return host


def _of_config(config: Any, known: Iterable[type[Host]]) -> type[Host] | None:
    """The host of ``known`` for a model of ``config``: of those of its type the one for its class, if there is one."""
    fitting = [host for host in _in_order(known) if host.takes(config)]
    made = set(getattr(config, "architectures", None) or ())
    own = [host for host in fitting if made.intersection(host.architectures)]
    return next(iter(own or [host for host in fitting if not host.architectures]), None)


def wanted(method: str) -> str:
    """The hosts of ``method`` in words, such as ``BART or T5``."""
    *others, last = [host.words for host in _in_order(of_method(method).values())]
    return f"{', '.join(others)} or {last}" if others else last


def bound(model: Any, tokenizer: object) -> Host:
    """The host of ``model``, bound to its configuration and ``tokenizer``, of the kind that this host reads by."""
    known = [module.HOST for module in _rooms.modules(__name__).values()]
    found = _of_config(model.config, [host for host in known if host.reads_by(tokenizer)])
    if found is None:
        raise UserError(f"no host is known for a {model.config.model_type!r} model")
    return found(model.config, tokenizer)


def _in_order(found: Iterable[type[Host]]) -> list[type[Host]]:
    return sorted(found, key=lambda host: host.order)


def load(host: type[Host], folder: str | Path, settings: Any) -> nn.Module:
    """The model of ``host`` in ``folder``, in evaluation mode; :class:`UserError` names the file that is damaged."""
    return _read(folder, lambda: host.load(folder, settings))


def pretrained(host: type[Host], settings: Any, tokenizer: Any) -> nn.Module:
    """``settings.host`` as a run saves it; :class:`UserError` names what is missing or damaged."""
    return _read(settings.host, lambda: host.pretrained(settings, tokenizer))


def tokenizers(host: type[Host], folder: str | Path) -> Any:
    """The tokenizer or tokenizers of ``host`` in ``folder``; :class:`UserError` names the file that is damaged."""
    return _read(folder, lambda: host.tokenizers(folder))


def check_files(folder: str | Path, hint: str = "keep the folders of a run together") -> None:
    """Raise :class:`UserError` if a host that a run saved in ``folder`` lacks a file, or one of them is damaged."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"the host's config.json is not in {folder}; {hint}")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise UserError(f"the host's weights, model.safetensors, are not in {folder}; {hint}")
    for name, reason in damaged_files(folder).items():
        raise UserError(f"the host's {name} in {folder} is damaged ({reason}); {hint}")


def _read(folder: str | Path, read: Callable[[], Any]) -> Any:
    """``read()``, whose errors, of whatever library, are the user's: ``folder`` is what they handed in."""
    try:
        return read()
    except UserError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        damaged = damaged_files(folder) if Path(folder).is_dir() else {}
        where = "".join(f"; {name} is damaged ({reason})" for name, reason in damaged.items())
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"host: cannot load {str(folder)!r}{where}: {said}") from error
