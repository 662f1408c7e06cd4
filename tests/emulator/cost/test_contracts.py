"""nvcc's kernels cost what the table says and keep the rules, but for the breaks that are listed."""

import json

import pytest

from tests.emulator import kernels
from tests.emulator.cost import contracts
from tests.emulator.cost.counting import measured, short_name
from tests.emulator.cost.known_breaks import BREAKS, DOUBLES, PUBLISHED
from tests.emulator.cost.shapes import published, small
from tests.emulator.ptx import PtxEmulator, build, why_absent

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_absent() is not None, reason=str(why_absent()))]
CASES = small()
# Kernels of theirs that no other call has compile for most of a minute.
DEAR = ("gated_adapter/t5-1024", "gated_adapter/stream-512", "mode_update/wide-1024")
COUNTED = [pytest.param(case, marks=pytest.mark.nightly if case.label in DEAR else ()) for case in CASES]


@pytest.fixture(scope="module")
def machine():
    return PtxEmulator(kernels())


@pytest.mark.parametrize("case", COUNTED, ids=lambda case: case.label)
def test_call_costs_what_the_table_says(case, machine):
    """`python -m tests.emulator.cost --table` renews the table if a kernel became cheaper, or dearer for a reason."""
    counted = measured(machine, case)
    found, listed = contracts.broken(counted), BREAKS.get(case.label, set())
    assert not found - listed, "rules broken that are not listed"
    assert not listed - found, "mended: take these out of known_breaks.py"
    assert not contracts.dearer(contracts.held(counted), json.loads(contracts.TABLE.read_text())[case.label])


@pytest.mark.nightly
@pytest.mark.parametrize("case", published(), ids=lambda case: case.label)
def test_published_call_costs_what_its_table_says(case, machine):
    """`python -m tests.emulator.cost --table --published` renews that table. The rules are broken by no kernel that
    does not break them in a call of 1,024 tokens, but for those that PUBLISHED lists."""
    counted = measured(machine, case)
    listed = {said for breaks in BREAKS.values() for said in breaks} | PUBLISHED.get(case.label, set())
    assert not contracts.broken(counted, filled=False) - listed, "rules broken that are not listed"
    assert not contracts.dearer(contracts.held(counted), json.loads(contracts.PUBLISHED.read_text())[case.label])


def test_every_kernel_is_launched_by_a_counted_call():
    """Of the kernels in bfloat16, in which the calls are."""
    counted = {
        kernel["kernel"]
        for path in (contracts.TABLE, contracts.PUBLISHED)
        for call in json.loads(path.read_text()).values()
        for kernels in call.values()
        for kernel in kernels
    }
    every = {short_name(name) for name in build.kernels_of() if "BFloat16" in name}
    assert not every - counted


def test_lists_have_every_call_and_no_other():
    assert json.loads(contracts.PUBLISHED.read_text()).keys() == {case.label for case in published()}
    labels = {case.label for case in CASES}
    assert json.loads(contracts.TABLE.read_text()).keys() == labels and BREAKS.keys() <= labels


def test_no_double_precision_in_narrower_kernels():
    """A card for games has 1/64 of the units for it, and no constant needs them."""
    assert contracts.with_doubles().keys() == DOUBLES


def test_dearer_call_is_noticed():
    one = dict.fromkeys(contracts.LIMITED, 100) | {"kernel": "k", "registers": 64, "blocks_of_multiprocessor": 4}
    listed = {"fwd": [one]}
    assert not contracts.dearer({"fwd": [one | {"instructions": 105}]}, listed)
    for change in ({"instructions": 106}, {"sectors": 120}, {"registers": 128, "blocks_of_multiprocessor": 2}):
        assert len(contracts.dearer({"fwd": [one | change]}, listed)) == 1
    assert contracts.dearer({"fwd": [one, one]}, listed)
