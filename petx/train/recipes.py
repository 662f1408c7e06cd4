"""The recipes by name: a method's package below :mod:`petx.train` with its ``RECIPE``."""

import importlib
import pkgutil

from petx import train
from petx.errors import UserError
from petx.train.recipe import Recipe


def find(name: str) -> Recipe:
    """``RECIPE`` of the package ``petx.train.NAME``, for what is read from disk; a run holds its own."""
    known = names()
    if name not in known:
        raise UserError(f"unknown recipe {name!r}; there are: {', '.join(known)}")
    return importlib.import_module(f"petx.train.{name}").RECIPE


def names() -> list[str]:
    """The recipes there are: the packages below :mod:`petx.train`."""
    return [info.name for info in pkgutil.iter_modules(train.__path__) if info.ispkg]
