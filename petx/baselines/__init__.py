"""Baselines: the ways to tune a host that a run compares, the method itself among them.

One module each, with its :class:`Baseline` as ``BASELINE``, or a family of them as ``BASELINES``.
"""

import functools

from petx import _rooms
from petx.baselines.base import Baseline
from petx.errors import UserError

__all__ = ["Baseline", "find", "of_method"]


@functools.cache
def of_method(method: str) -> dict[str, Baseline]:
    """``{name: baseline}`` of all that the recipe ``method`` offers, in the order of its table."""
    found: list[Baseline] = []
    for module in _rooms.modules(__name__).values():
        found += getattr(module, "BASELINES", None) or [module.BASELINE]
    offered = [baseline for baseline in found if method in baseline.methods]
    return {baseline.name: baseline for baseline in sorted(offered, key=lambda one: (one.order, one.name))}


def find(name: str, method: str) -> Baseline:
    """The baseline called ``name`` of the recipe ``method``."""
    known = of_method(method)
    if name not in known:
        raise UserError(f"unknown arm {name!r}; there are: {', '.join(known)}")
    return known[name]
