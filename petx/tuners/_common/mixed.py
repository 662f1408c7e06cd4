"""A batch whose rows belong to different adapters: ``adapter_names`` in forward and generate."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from petx.errors import UserError

__all__ = ["BASE", "Rows", "count_of", "replaced_forward", "trained_whole"]

BASE = "__base__"  # PEFT's name for the frozen model itself


class Rows:
    """Which adapter computes which rows of a batch."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)

    def check(self, count: int) -> None:
        """Raise UserError unless there is one name for each of the ``count`` rows that were given."""
        if count != len(self.names):
            raise UserError(f"adapter_names must name every row: {len(self.names)} names for {count} rows")

    def split(self, count: int, device: torch.device) -> dict[str, torch.Tensor]:
        """Adapter name -> indices of its rows among ``count``.

        Beams, returned sequences and frames repeat every row, one row's repetitions after the other's.
        """
        each, rest = divmod(count, len(self.names))
        if rest:
            raise UserError(f"adapter_names must name every row: {len(self.names)} names for {count} rows")
        of = [name for name in self.names for _ in range(each)]
        return {
            name: torch.tensor([i for i, other in enumerate(of) if other == name], device=device)
            for name in dict.fromkeys(of)
        }

    def run(self, call: Callable[[str, tuple, dict], Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """What ``call(adapter name, args, kwargs)`` returns for every adapter's rows, put together again."""
        first = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        count, parts = len(first), []
        for name, index in self.split(count, first.device).items():
            own = {key: _some(value, index, count) for key, value in kwargs.items()}
            parts.append((index, call(name, tuple(_some(value, index, count) for value in args), own)))
        return _joined(parts, count)


def count_of(given: dict[str, Any]) -> int | None:
    """How many rows the arguments ``given`` of a model have; None if nothing there tells."""
    for name in ("input_ids", "inputs", "inputs_embeds", "encoder_outputs", "pixel_values"):
        value = given.get(name)
        value = value[0] if name == "encoder_outputs" and value is not None else value
        if isinstance(value, torch.Tensor) and (name != "pixel_values" or value.dim() > 3):  # else patches, not rows
            return len(value)
    return None


def _some(value: Any, index: torch.Tensor, count: int) -> Any:
    if isinstance(value, torch.Tensor):
        return value[index.to(value.device)] if value.dim() and len(value) == count else value
    if type(value) in (tuple, list):
        return type(value)(_some(one, index, count) for one in value)
    return value


def _joined(parts: list[tuple[torch.Tensor, Any]], count: int) -> Any:
    value = parts[0][1]
    if isinstance(value, torch.Tensor):
        order = torch.cat([index for index, _ in parts]).argsort()
        return torch.cat([part for _, part in parts])[order]
    if isinstance(value, dict):  # transformers' outputs, too
        return type(value)(**{key: _joined([(i, part[key]) for i, part in parts], count) for key in value})
    if type(value) in (tuple, list):
        return type(value)(_joined([(i, part[k]) for i, part in parts], count) for k in range(len(value)))
    if value is None or all(part is value or part == value for _, part in parts):
        return value
    raise UserError(f"adapter_names: cannot put together the rows of a {type(value).__name__}")


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """``module`` with another forward, within its hooks."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


@contextmanager
def trained_whole(wrapper: AuxiliaryTrainingWrapper, rows: Rows) -> Iterator[None]:
    """A module that adapters train whole, with every row through its adapter's copy, or the frozen model's own."""

    def call(name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        copies = wrapper.modules_to_save
        return (copies[name] if name in copies else wrapper.original_module)(*args, **kwargs)

    with replaced_forward(wrapper, lambda *args, **kwargs: rows.run(call, args, kwargs)):
        yield
