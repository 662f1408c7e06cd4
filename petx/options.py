"""A setting with its help text and what it may be, as a field of a dataclass; the one check of a value."""

import dataclasses
import math
import types
import typing
from typing import Any

from petx.errors import UserError
from petx.files import user_name, user_path

BEAMS = dict(least=1, most=1024)  # what num_beams may be
RANGES = ("least", "above", "most", "below")


def option(default: Any, text: str, **metadata: Any) -> Any:
    """A dataclass field of ``default`` whose ``--help`` is ``text``.

    ``metadata``: ``choices`` (allowed values), ``flag`` (its name on the command line), ``sentences`` (a list whose
    entries may hold spaces, written as YAML), ``path`` (a file or folder: ``~`` is the home folder), ``least`` and
    ``most`` (bounds that are allowed), ``above`` and ``below`` (bounds that are not), ``each`` (for a list or mapping:
    the same for its values, with their type as ``kind``). A number must be finite.
    """
    metadata["help"] = text
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def checked_value(name: str, value: Any, hint: Any, rule: typing.Mapping[str, Any]) -> Any:
    """``value`` of the setting ``name`` in the type ``hint``, within the ``rule`` that :func:`option` took.

    YAML reads ``1e-3`` as text, so numbers are taken from text too. Raises :class:`UserError` naming the setting, what
    came and what was wanted.
    """
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    wanted, choices = kinds[0], rule.get("choices")
    if value is False and choices and "off" in choices:  # YAML reads a bare off so
        value = "off"
    value = _typed(name, value, wanted)
    if choices and value not in choices:
        listed = ", ".join("none" if choice is None else str(choice) for choice in choices)
        raise UserError(f"{name} must be one of {listed}; got {value!r}")
    if rule.get("path"):
        user_path(value, name)  # refuses what is none
        return user_name(value, name)
    if wanted in (int, float):
        _check_range(name, value, rule)
    each = rule.get("each")
    if each is None:
        return value
    if wanted is list:
        return [checked_value(f"{name}[{i}]", one, each["kind"], each) for i, one in enumerate(value)]
    for key in value:
        if not isinstance(key, str):
            _refuse(name, "a mapping whose keys are text", value)
    return {key: checked_value(f"{name}.{key}", one, each["kind"], each) for key, one in value.items()}


def _typed(name: str, value: Any, wanted: type) -> Any:
    if wanted in (list, dict, str, bool):
        if not isinstance(value, wanted):
            _refuse(name, "text" if wanted is str else wanted.__name__, value)
        return value
    words = wanted.__name__
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        _refuse(name, words, value)
    if wanted is int and isinstance(value, int):
        return value
    try:
        if wanted is int and isinstance(value, str):
            return int(value)  # not by way of a float, which rounds what is beyond 2^53
    except ValueError:
        pass  # such as 1e3
    try:
        number = float(value)
    except (ValueError, OverflowError):
        _refuse(name, words, value)
    if not math.isfinite(number):
        _refuse(name, f"a finite {words}", value)
    if wanted is float:
        return number
    if number != int(number):
        _refuse(name, words, value)
    return int(number)


def _check_range(name: str, value: Any, rule: typing.Mapping[str, Any]) -> None:
    least, above, most, below = (rule.get(bound) for bound in RANGES)
    fits = (least is None or value >= least) and (above is None or value > above)
    fits = fits and (most is None or value <= most) and (below is None or value < below)
    if not fits:
        low = f"[{least}" if least is not None else f"({above}"
        high = f"{most}]" if most is not None else f"{below})"
        words = f"in {low}, {high}"
        if most is None and below is None:
            words = f"at least {least}" if least is not None else f"above {above}"
        _refuse(name, words, value)


def _refuse(name: str, wanted: str, value: Any) -> typing.NoReturn:
    raise UserError(f"{name} must be {wanted}, got {value!r}")
