"""What ``--help`` says of a setting: its text, what it may be, its default, and what a preset sets instead."""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

__all__ = ["asks_for_help", "described", "named_preset"]


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for ``--help``."""
    return not {"-h", "--help"}.isdisjoint(arguments)


def named_preset(arguments: Sequence[str], otherwise: str) -> str:
    """The value of ``--preset`` in a command line that is not parsed yet, or ``otherwise``."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?")
    return parser.parse_known_args(arguments)[0].preset or otherwise


def described(field: dataclasses.Field, preset: str, value: Any) -> str:
    """The help text of ``field``; ``value``: what the preset called ``preset`` sets, None if nothing."""
    default = None if field.default is dataclasses.MISSING else field.default
    notes = []
    if choices := field.metadata.get("choices"):
        notes.append(f"one of {', '.join(_shown(choice) for choice in choices)}")
    if default not in (None, False):
        notes.append(f"default: {_shown(default)}")
    if value not in (None, default) and value != [] and not isinstance(value, dict):
        notes.append(f"{preset}: {_shown(value)}")
    return field.metadata["help"] + (f" ({'; '.join(notes)})" if notes else "")


def _shown(value: Any) -> str:
    """A value as a command line takes it."""
    if value is None or isinstance(value, bool):
        return "none" if value is None else str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
