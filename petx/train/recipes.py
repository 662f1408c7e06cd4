"""The recipes by name: a method's package below :mod:`petx.train` with its ``RECIPE``."""

import importlib

from petx.train.recipe import Recipe


def find(name: str) -> Recipe:
    """``RECIPE`` of the package ``petx.train.NAME``, for what is read from disk; a run holds its own."""
    return importlib.import_module(f"petx.train.{name}").RECIPE
