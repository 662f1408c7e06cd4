"""The CUDA kernels, run on the CPU by tests/emulator, against the reference and against themselves."""

import math

import pytest
import torch

from tests.cases import TABLES, few
from tests.checks import outputs_and_grads, wrong
from tests.emulator import ORDERS


def dtyped():
    """Cases and dtypes. float64 takes float32's kernels with wider numbers, float16 bfloat16's: a few cases each. The
    everyday loop has a few of the others, too."""
    main = (torch.float32, torch.bfloat16)
    everyday = [(case, dtype) for dtype in main for case in few()]
    whole = [case for table in TABLES.values() for case in (*table.CASES, *table.WIDE)]
    slow = [(case, dtype) for dtype in main for case in whole if case not in few()]
    slow += [(case, dtype) for dtype in (torch.float64, torch.float16) for case in few()]
    for chosen, marks in ((everyday, ()), (slow, pytest.mark.slow)):
        for case, dtype in chosen:
            yield pytest.param(case, dtype, id=f"{case}-{str(dtype)[6:]}", marks=marks)


def is_small(case):
    return sum(map(math.prod, case.shapes.values())) < 6000


@pytest.mark.parametrize(("case", "dtype"), list(dtyped()))
def test_kernels_match_reference(case, dtype, emulator):
    """Error against float64 at most twice torch's own in the same dtype, or the dtype's own resolution; and the same
    bits in every order of warps, lanes and blocks."""
    tensors, results = case.inputs(dtype), []
    for order in ORDERS if is_small(case) else ("random-1", "descending"):
        emulator.order = order
        results.append(outputs_and_grads(case.run, tensors))
    assert not wrong(results[0], case, tensors)
    for name, value in results[0].items():
        assert value is None or all(torch.equal(other[name], value) for other in results[1:]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", list(filter(is_small, few())), ids=str)
def test_inputs_may_begin_anywhere(case, dtype, emulator):
    """Slices of other tensors give the same bits as tensors that begin at multiples of sixteen bytes."""
    tensors, results = case.inputs(dtype), []
    for emulator.offset in (1, 0):
        results.append(outputs_and_grads(case.run, tensors))
    for name, value in results[0].items():
        assert value is None or torch.equal(results[1][name], value), name


@pytest.mark.slow
@pytest.mark.parametrize("case", list(filter(is_small, few())), ids=str)
def test_gradients_of_every_subset(case, emulator):
    """Asking for one argument's gradient, or for all but one, changes none of the others."""
    full = outputs_and_grads(case.run, case.inputs(torch.float32))
    names = [name for name in case.shapes if full[name] is not None]
    for chosen in names:
        for wanted in ({chosen}, set(names) - {chosen}) if len(names) > 1 else ({chosen},):
            tensors = case.inputs(torch.float32, requires_grad=False)
            for name in wanted:
                tensors[name].requires_grad_()
            for name, value in outputs_and_grads(case.run, tensors).items():
                assert torch.equal(value, full[name]), (chosen, name)
