"""One thread at a time in a stack of layers, whose hooks hand tensors of the running pass from module to module."""

import threading
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

__all__ = ["OneThread", "stack_of"]


class OneThread:
    """Hooks on a module by which the forward pass of a second thread waits for the end of the first's.

    They come first and last: :meth:`connect` is called when all other hooks on the module are there.
    A pass inside a pass of the same thread goes on. A module that is compiled runs without: it has no Python to share.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._inside: list[nn.Module] = []  # by the thread that holds the lock

    def connect(self, module: nn.Module) -> list[RemovableHandle]:
        leave = module.register_forward_hook(self._leave, always_call=True)
        return [module.register_forward_pre_hook(self._enter, prepend=True), leave]

    def _enter(self, module: nn.Module, args: tuple) -> None:
        if not torch.compiler.is_compiling():
            self._lock.acquire()
            while module in self._inside:  # left there by an interrupt (Ctrl-C), after which torch calls no hook
                self._inside.pop()
                self._lock.release()
            self._inside.append(module)

    def _leave(self, module: nn.Module, *_: Any) -> None:
        # Called, too, for a pass that another hook refused before this one was entered.
        if not torch.compiler.is_compiling() and self._lock._is_owned() and self._inside[-1:] == [module]:  # type: ignore[attr-defined]
            self._inside.pop()
            self._lock.release()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return OneThread, ()  # a copy of the model has a lock of its own


def stack_of(model: nn.Module, path: str) -> nn.Module:
    """The module that runs the list of layers that ``path`` is in; the model itself if it is in none."""
    parts = path.split(".")
    for i in range(1, len(parts)):
        if isinstance(model.get_submodule(".".join(parts[:i])), nn.ModuleList):
            return model.get_submodule(".".join(parts[: i - 1]))
    return model
