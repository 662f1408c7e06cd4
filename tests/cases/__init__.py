"""The tables that drive every test and benchmark: of each operation its cases, in the module of its name.

A module has ``CASES``, ``GRADCHECKED`` (tiny ones), ``WIDE`` (several tiles of the CUDA kernels in every direction,
whole and ragged, which ``CASES`` is too narrow for) and ``FEW``, the names of cases that cover what matters where a
test cannot run all. An operation's module is found by its name; there is no list to extend. What a case is, and how one
is made, is in :mod:`petx.certify.cases`, because every card runs some of them.
"""

import importlib
import pkgutil

from petx.certify.cases.case import Case

__all__ = ["BY_NAME", "CASES", "TABLES", "Case", "few"]

TABLES = {info.name: importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)}
CASES = [case for table in TABLES.values() for case in table.CASES]
BY_NAME = {(case.operation, case.name): case for case in CASES}
assert len(BY_NAME) == len(CASES), "two cases of one operation have the same name"


def few():
    """The cases of every operation that its table calls enough."""
    return [case for table in TABLES.values() for case in table.CASES if case.name in table.FEW]
