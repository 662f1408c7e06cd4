"""Rooms: packages in which every module brings one thing, found by name, so that adding one touches no list."""

import functools
import importlib
import pkgutil
from types import ModuleType


@functools.cache
def modules(package: str) -> dict[str, ModuleType]:
    """The modules of ``package`` by name, but ``base`` and what begins with an underscore."""
    folder = importlib.import_module(package)
    names = sorted(info.name for info in pkgutil.iter_modules(folder.__path__))
    return {n: importlib.import_module(f"{package}.{n}") for n in names if n != "base" and not n.startswith("_")}


def first_line(thing: object) -> str:
    """First line of a docstring, for listings."""
    return as_text((thing.__doc__ or "").strip().partition("\n")[0])


def as_text(docstring: str) -> str:
    """A docstring as a terminal shows it: code in one backtick, as in all messages, and not in two."""
    return docstring.replace("``", "`")
