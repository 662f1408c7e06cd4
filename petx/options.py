"""A setting with its help text, as a field of a dataclass."""

import dataclasses
from typing import Any


def option(default: Any, text: str, **metadata: Any) -> Any:
    """A dataclass field of ``default`` whose ``--help`` is ``text``.

    ``metadata``: ``choices`` (allowed values), ``flag`` (its name on the command line), ``sentences`` (a list whose
    entries may hold spaces, written as YAML).
    """
    metadata["help"] = text
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
