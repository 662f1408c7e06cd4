"""nvcc's kernels, executed on the CPU, against the reference and against themselves."""

import itertools
import re

import pytest
import torch

from tests.cases import TABLES, few
from tests.checks import outputs_and_grads, wrong
from tests.emulator import ORDERS
from tests.emulator.ptx import build, why_absent
from tests.emulator.ptx.text import ENTRY, entries
from tests.emulator.ptx.translate import translated
from tests.emulator.test_emulated_kernels import is_small
from tests.emulator.test_wide_tiles_cuda import CASES as WIDE_CASES

pytestmark = pytest.mark.slow
ALL = [case for table in TABLES.values() for case in [*table.CASES, *table.WIDE]]
# The case table once in each of these types, in orders that alternate; the rest is nightly.
WHOLE = list(itertools.product(ALL, (torch.bfloat16, torch.float32)))
SAMPLED = list(itertools.product(filter(is_small, few()), (torch.float16, torch.float64)))
REST = [pair for pair in itertools.product(ALL, (torch.float16, torch.float64)) if pair not in SAMPLED]


def named(pairs, *marks):
    return [pytest.param(*pair, id=f"{pair[0]}-{str(pair[1])[6:]}", marks=marks) for pair in pairs]


@pytest.mark.parametrize(("case", "dtype"), [*named([*WHOLE, *SAMPLED]), *named(REST, pytest.mark.nightly)])
def test_kernels_match_reference(case, dtype, nvcc_kernels):
    """Error against float64 at most twice torch's own in the same dtype, or the dtype's own resolution; no race, no
    access out of bounds, nothing read that nobody wrote."""
    tensors = case.inputs(dtype)
    nvcc_kernels.order = ("random-1", "descending")[len(case.name) % 2]
    assert not wrong(outputs_and_grads(case.run, tensors), case, tensors)


@pytest.mark.parametrize("case", WIDE_CASES, ids=str)
def test_wide_tiles_match_reference(case, nvcc_kernels, monkeypatch):
    """Which only large calls take by themselves."""
    monkeypatch.setenv("PETX_CUDA_WIDE", "32"[len(case.name) % 2])
    monkeypatch.setenv("PETX_CUDA_SPLITS", "3")
    test_kernels_match_reference(case, torch.bfloat16, nvcc_kernels)


@pytest.mark.nightly
@pytest.mark.parametrize(("case", "dtype"), named(WHOLE))
def test_every_order_gives_the_same_bits(case, dtype, nvcc_kernels):
    tensors, results = case.inputs(dtype), []
    for order in ORDERS if is_small(case) else ("random-2", "descending"):
        nvcc_kernels.order = order
        results.append(outputs_and_grads(case.run, tensors))
    for name, value in results[0].items():
        assert value is None or all(torch.equal(other[name], value) for other in results[1:]), name


@pytest.mark.skipif(why_absent() is not None, reason=str(why_absent()))
@pytest.mark.parametrize("source", build.sources(), ids=lambda path: path.stem)
def test_every_entry_is_translated(source):
    """Of every type, whether a case launches it or not."""
    text = build.ptx_of(source).read_text()
    found = entries(text)
    assert len(found) == text.count(".entry ") and found
    for entry in found:
        unit = translated(entry)
        assert sum(sum(opcodes.values()) for opcodes in unit.opcodes) == len(entry.opcodes())


PARAMETER = re.compile(r"\.param (?:\.align (\d+) )?\.([bus])(\d+) \w+(?:\[(\d+)\])?")
MOST_PARAMETERS = 4096  # bytes of a launch's parameters, before CUDA 12.1


def parameter_bytes(listed):
    """Of a kernel, from the parameters that its PTX declares; each begins where its size or ``.align`` says."""
    end = 0
    for align, _, bits, count in PARAMETER.findall(listed):
        size = int(bits) // 8
        begin = -(-end // int(align or size)) * int(align or size)
        end = begin + size * int(count or 1)
    return end


def test_parameter_bytes():
    assert parameter_bytes(".param .align 8 .b8 a[12],\n.param .u64 b,\n.param .u32 c") == 28
    assert parameter_bytes("") == 0


@pytest.mark.skipif(why_absent() is not None, reason=str(why_absent()))
def test_parameters_fit_into_a_launch():
    """Most of all those of `reconstruct`, which has a table of modules in them."""
    found = {}
    for source in build.sources():
        text = build.ptx_of(source).read_text()
        for entry, declared in [(match[1], match[2]) for match in ENTRY.finditer(text)]:
            found[entry] = parameter_bytes(declared)
            assert declared.count(".param") == len(PARAMETER.findall(declared)), entry
    assert max(found.values()) <= MOST_PARAMETERS
    assert "reconstruct" in max(found, key=found.get) and min(found.values()) > 0
