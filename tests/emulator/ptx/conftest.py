"""Fixtures of the tests that execute PTX."""

import pytest

from petx import ops
from tests import emulator
from tests.emulator.operations import in_place_of_cpu_kernels
from tests.emulator.ptx import PtxEmulator, why_absent


@pytest.fixture(scope="session")
def machine():
    """The emulator's library for PTX that a test brings itself; it needs no nvcc."""
    return PtxEmulator(emulator.kernels())


@pytest.fixture
def nvcc_kernels(machine):
    """nvcc's kernels in place of the CPU's, in this test; whatever it calls must reach one."""
    if why_absent():
        pytest.skip(why_absent())
    if ops._C is None:
        pytest.skip(f"needs the compiled library's operators: {ops._load_error}")
    machine.offset, machine.order = 0, "random-1"
    machine.reset()
    with in_place_of_cpu_kernels(machine):
        yield machine
    assert machine.launches and machine.counters().launches == len(machine.launches)
