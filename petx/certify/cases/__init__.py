"""The calls that certify a card: of each operation, in the module of its name, what a case is and how one is made.

A module has ``CERTIFIED``, its trials, and ``SHAPES`` with ``timed``, which makes a benchmark's case of a shape
``(rows, width, rank)``. A module is found by its name; there is no list to extend.
"""

import importlib
import pkgutil
from types import ModuleType

from petx.certify.cases.case import Case, Trial

__all__ = ["CASES", "MODULES", "Case", "Trial"]

MODULES: dict[str, ModuleType] = {
    info.name: importlib.import_module(f"{__name__}.{info.name}")
    for info in pkgutil.iter_modules(__path__)
    if info.name != "case"
}
CASES: dict[str, list[Trial]] = {stem: module.CERTIFIED for stem, module in MODULES.items()}
