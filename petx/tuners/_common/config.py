"""Checks of a configuration, from its annotations: what comes from a user or from a file that somebody passed on."""

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from peft import PeftConfig

from petx.errors import UserError

Config = TypeVar("Config", bound=PeftConfig)

__all__ = ["check_fields", "takes_no"]

WORDS = {int: "an integer", float: "finite and a number", bool: "True or False", str: "a text", dict: "a dict"}
# Options of other methods of PEFT that say where an adapter goes.
PLACES = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "target_parameters")


def check_fields(config: PeftConfig, least: Mapping[str, int]) -> None:
    """Raise UserError if a field is not of its annotated type, a number is not finite, or less than ``least`` says."""
    hints, inherited = typing.get_type_hints(type(config)), {field.name for field in dataclasses.fields(PeftConfig)}
    for field in dataclasses.fields(config):
        if field.name in inherited:
            continue
        value, hint = getattr(config, field.name), hints[field.name]
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        wanted = " or ".join(_words(kind, least.get(field.name)) for kind in kinds)
        good = any(_is(value, kind) for kind in kinds)
        if good and value is not None and field.name in least:
            good = value >= least[field.name]
        if not good:
            raise UserError(f"{type(config).__name__}: {field.name} must be {wanted}, got {value!r}")
        if isinstance(value, set | tuple):
            setattr(config, field.name, list(value))


def _words(kind: Any, least: int | None) -> str:
    if kind is types.NoneType:
        return "None"
    if least is not None:
        return {0: "an integer that is not negative", 1: "a positive integer"}[least]
    if typing.get_origin(kind) is list:
        return f"a list of {WORDS[typing.get_args(kind)[0]].removeprefix('a ')}s"
    return WORDS[kind]


def _is(value: Any, kind: Any) -> bool:
    if kind is types.NoneType:
        return value is None
    if typing.get_origin(kind) is list:
        return isinstance(value, list | tuple | set) and all(_is(one, typing.get_args(kind)[0]) for one in value)
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is int:
        return isinstance(value, numbers.Integral)
    if kind is float:
        return isinstance(value, numbers.Real) and math.isfinite(value)
    return isinstance(value, kind)


def takes_no(instead: str) -> Callable[[type[Config]], type[Config]]:
    """Class decorator of a configuration: PEFT's options for places are refused, with what is there ``instead``."""

    def decorate(config_class: Any) -> Any:
        made = config_class.__init__

        @functools.wraps(made)
        def checked(self: Any, *args: Any, **kwargs: Any) -> None:
            for name in PLACES:
                if name in kwargs:
                    raise UserError(
                        f"{config_class.__name__}: {name} (got {kwargs[name]!r}) is no option of this method; {instead}"
                    )
            made(self, *args, **kwargs)

        config_class.__init__ = checked
        return config_class

    return decorate
