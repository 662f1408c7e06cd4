"""Mistakes to put into the kernels on purpose: of each operation, of the tiles that all share, and of the CPU's, a file
of its name.

A file has

- ``OPERATION``: whose kernels are built, a folder of ``csrc/cuda`` and a file of the emulator's ``operations``, or
  several;
- ``FILES``: the files whose barriers are taken out one by one;
- ``MUTATIONS``: named changes;
- ``CHECKS``: what must notice them, from cheap to dear. A check takes the emulator and returns what is wrong, or None;
- ``SPARED``, if it says so: the dtypes that are not compiled, as :data:`SPARED` here;
- ``CPU = True``, if its files are below ``csrc`` and not ``csrc/cuda``: then the whole library is built, and a check is
  what pytest is to run.

Files are found by their names; there is no list to extend. A name with an underscore in front is no module: _common.py
has the mistakes that several list.
"""

import importlib
import os
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch

from tests.checks import outputs_and_grads, wrong
from tests.emulator import CSRC

# float64 and float16 take the source of float32 and bfloat16.
SPARED = ("f64", "f16")
BARRIERS = r"\b(?:sync_block|sync_warp|sync_group)\([^;]*\);"


@dataclass(frozen=True)
class Mutation:
    """The one place of ``file`` that ``pattern`` finds becomes ``replacement``, both as ``re.sub`` reads them."""

    name: str
    file: str
    pattern: str
    replacement: str

    def apply(self, text):
        text, count = re.subn(self.pattern, self.replacement, text)
        assert count == 1, f"{self.name}: {self.file} has {self.pattern} {count} times, not once"
        return text


@dataclass(frozen=True)
class Turned(Mutation):
    """The same with the grid turned: blocks of one axis are those of the other, in all of the file."""

    def apply(self, text):
        axes = {"block_x()": "block_y()", "block_y()": "block_x()"}
        return re.sub(r"block_[xy]\(\)", lambda found: axes[found[0]], super().apply(text))


@dataclass(frozen=True)
class MissingBarrier:
    """The file without its barrier number ``number``."""

    file: str
    number: int
    line: int

    @property
    def name(self):
        return f"no barrier {self.number + 1} of {self.file} (line {self.line})"

    def apply(self, text):
        found = list(re.finditer(BARRIERS, text))[self.number]
        return text[: found.start()] + ";" + text[found.end() :]


@dataclass(frozen=True)
class Check:
    name: str
    run: Callable  # takes the emulator, returns what is wrong or None

    def __str__(self):
        return self.name


def of_case(case, dtype):
    """The case's results: right, of the same bits in two orders, made without bank conflicts."""

    def run(emulator):
        tensors, results = case.inputs(dtype), []
        for emulator.order in ("random-1", "descending"):
            emulator.library.simt_reset_counters()
            results.append(outputs_and_grads(case.run, tensors))
        for name, value in results[0].items():
            if value is not None and not torch.equal(value.nan_to_num(), results[1][name].nan_to_num()):
                return f"{name} has other bits in another order"
        said = wrong(results[0], case, tensors)
        if said is None and emulator.counters().bank_conflicts:
            said = f"{emulator.counters().bank_conflicts} bank conflicts"
        return said

    return Check(f"{case}, {str(dtype)[6:]}", run)


def under(check, **environment):
    """The check with variables set."""

    def run(emulator):
        with mock.patch.dict(os.environ, environment):
            return check.run(emulator)

    return Check(f"{check}, {', '.join(f'{name}={value}' for name, value in environment.items())}", run)


def of_assertions(name, test, *arguments):
    """A test function that takes the emulator last: what it asserts."""

    def run(emulator):
        emulator.order = "ascending"
        emulator.library.simt_reset_counters()
        try:
            test(*arguments, emulator)
        except AssertionError as error:
            return str(error).partition("\n")[0] or "its assertion fails"

    return Check(name, run)


def modules():
    """Name -> module of every file here but those that begin with an underscore."""
    names = [info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_")]
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}


def operations(module):
    """The names of those whose kernels a module's mutations are put into."""
    return (module.OPERATION,) if isinstance(module.OPERATION, str) else module.OPERATION


def of_cpu(module):
    return getattr(module, "CPU", False)


def source(module, file, csrc=CSRC):
    """The path of a mutation's file."""
    return csrc / file if of_cpu(module) else csrc / "cuda" / file


def mutations(module):
    """All of a module: what it names, then the missing barriers of its files."""
    found = list(module.MUTATIONS)
    for file in module.FILES:
        text = source(module, file).read_text()
        for number, barrier in enumerate(re.finditer(BARRIERS, text)):
            found.append(MissingBarrier(file, number, text.count("\n", 0, barrier.start()) + 1))
    assert len({mutation.name for mutation in found}) == len(found), "two mutations have one name"
    return found
