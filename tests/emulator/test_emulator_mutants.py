"""A sample of the mutations (python -m tests.emulator.mutants runs all of them, docs/mutants.md is its report)."""

import pytest

from petx import ops
from tests.emulator import CSRC
from tests.emulator.mutants import Bench, executes_ptx, noticed
from tests.emulator.mutations import MissingBarrier, modules, mutations
from tests.emulator.ptx import why_absent

MODULES = modules()


@pytest.mark.parametrize("name", MODULES)
def test_every_mutation_finds_its_place(name):
    """Else a kernel was changed and its mutations were not."""
    for mutation in mutations(MODULES[name]):
        text = (CSRC / "cuda" / mutation.file).read_text()
        assert mutation.apply(text) != text


@pytest.mark.slow
@pytest.mark.skipif(ops._C is None, reason="needs the compiled library's operators")
@pytest.mark.parametrize("name", MODULES)
def test_sample_is_noticed(name, tmp_path):
    """Of each module a missing barrier, or its first mutation where it has none."""
    module = MODULES[name]
    if executes_ptx(module) and why_absent():
        pytest.skip(why_absent())
    found = mutations(module)
    chosen = next((mutation for mutation in found if isinstance(mutation, MissingBarrier)), found[0])
    library = Bench(module, tmp_path).library("mutant", chosen)
    assert noticed(module, library), f"{chosen.name} goes unnoticed"
