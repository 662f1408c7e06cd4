"""Checks of what the metrics are given: texts, and as many of them on both sides."""

from collections.abc import Sequence
from typing import Any

from petx._checks import refuse_type


def check_texts(owner: str, name: str, value: Any) -> None:
    """``value`` is a list or tuple of texts."""
    if not isinstance(value, list | tuple):
        refuse_type(owner, name, "a list of texts", value)
    for i, one in enumerate(value):
        if not isinstance(one, str):
            refuse_type(owner, f"{name}[{i}]", "a text", one)


def check_text_lists(owner: str, name: str, value: Any) -> None:
    """``value`` is a list of lists of texts, none of them empty."""
    if not isinstance(value, list | tuple):
        refuse_type(owner, name, "a list of lists of texts", value)
    for i, texts in enumerate(value):
        check_texts(owner, f"{name}[{i}]", texts)
        if not texts:
            raise ValueError(f"{owner}: {name}[{i}] must hold at least one text, got none")


def check_as_many(owner: str, first: str, given: Sequence, second: str, other: Sequence) -> None:
    if len(given) != len(other):
        raise ValueError(f"{owner}: {first} and {second} must be as many, got {len(given)} and {len(other)}")
