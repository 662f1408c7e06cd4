"""nvcc's kernels, executed on the CPU, against the reference and against themselves."""

import itertools

import pytest
import torch

from tests.cases import TABLES, few
from tests.checks import outputs_and_grads, wrong
from tests.emulator import ORDERS
from tests.emulator.ptx import build, why_absent
from tests.emulator.ptx.text import entries
from tests.emulator.ptx.translate import translated
from tests.emulator.test_emulated_kernels import is_small

pytestmark = pytest.mark.slow
ALL = [case for table in TABLES.values() for case in [*table.CASES, *table.WIDE]]
# The case table once in each of these types, in orders that alternate; the rest takes an hour.
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
