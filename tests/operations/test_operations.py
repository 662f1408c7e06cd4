"""Every compiled operation against its reference, over the tables of tests/cases."""

import dataclasses

import pytest
import torch

from petx import ops
from tests.cases import CASES, TABLES, few
from tests.checks import outputs, outputs_and_grads, wrong

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
by_case = pytest.mark.parametrize("case", CASES, ids=str)
by_few = pytest.mark.parametrize("case", few(), ids=str)


@pytest.mark.parametrize("stem", TABLES)
def test_kernel_is_built(stem, device):
    assert ops.why_absent(stem, device) is None


@by_case
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernel_matches_reference(case, dtype, device):
    """Error against float64 at most twice torch's own in the same dtype, or the dtype's own resolution."""
    tensors = case.inputs(dtype, device=device)
    assert not wrong(outputs_and_grads(case.run, tensors), case, tensors)


@by_case
def test_scratch_may_hold_anything(case):
    """Unwritten memory may hold NaN, and a matrix product may read past an operand's last column."""
    tensors = case.inputs(torch.bfloat16)
    for _ in range(4):
        freed = [torch.full((count,), float("nan")) for count in range(16, 4096, 16) for _ in range(4)]
        del freed
        for name, value in outputs_and_grads(case.run, tensors).items():
            assert value is None or value.isfinite().all(), name


@pytest.mark.parametrize("case", [case for table in TABLES.values() for case in table.GRADCHECKED], ids=str)
def test_gradcheck(case, device):
    tensors = case.inputs(torch.float64, device=device)
    names = list(tensors)
    assert torch.autograd.gradcheck(
        lambda *values: case.run(dict(zip(names, values, strict=True))), list(tensors.values())
    )


@by_few
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_for_any_number_of_threads(case, dtype):
    tensors, before, results = case.inputs(dtype), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(outputs_and_grads(case.run, tensors))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name, value in results[0].items():
            assert value is None or torch.equal(value, other[name]), name


@by_few
def test_gradients_of_every_subset(case, device):
    """Asking for one argument's gradient, or for all but one, changes none of the others."""
    full = outputs_and_grads(case.run, case.inputs(torch.float32, device=device))
    names = [name for name in case.shapes if full[name] is not None]
    for chosen in names:
        for wanted in ({chosen}, set(names) - {chosen}) if len(names) > 1 else ({chosen},):
            tensors = case.inputs(torch.float32, requires_grad=False, device=device)
            for name in wanted:
                tensors[name].requires_grad_()
            for name, value in outputs_and_grads(case.run, tensors).items():
                assert torch.equal(value, full[name]), (chosen, name)


@pytest.mark.parametrize("case", [case for case in few() if case.ACTIVATIONS], ids=str)
@pytest.mark.parametrize("batch", [(0, 5), (3, 0)], ids=["no-samples", "no-tokens"])
def test_empty_batch(case, batch, device):
    empty = case.empty(batch)
    tensors = empty.inputs(torch.float32, device=device)
    for name, value in outputs_and_grads(empty.run, tensors).items():
        assert value is None or not value.any(), name
        assert value is None or name.startswith("out") or value.shape == empty.shapes[name]


@by_few
def test_strided_inputs(case, device):
    def strided(t):  # every second column of a wider tensor, dimensions stored in reverse
        wide = torch.zeros(*(2 * size for size in reversed(t.shape)), device=device)
        view = wide[tuple(slice(None, None, 2) for _ in t.shape)].permute(*reversed(range(t.dim())))
        return view.copy_(t.detach()).requires_grad_() if t.dim() > 1 else t

    tensors = case.inputs(torch.float32, device=device)
    plain = outputs_and_grads(case.run, tensors)
    views = {name: strided(t) for name, t in tensors.items()}
    assert not all(view.is_contiguous() for view in views.values())
    for name, value in outputs_and_grads(case.run, views).items():
        assert value is None or torch.equal(value, plain[name]), name


@by_few
def test_inputs_are_left_alone(case, device):
    tensors = case.inputs(torch.float32, device=device)
    before = {name: t.detach().clone() for name, t in tensors.items()}
    results = outputs(case.run(tensors))
    weights = [torch.randn_like(y) for y in results]
    kept = [weight.clone() for weight in weights]
    torch.autograd.grad(results, list(tensors.values()), weights, allow_unused=True)
    assert all(map(torch.equal, weights, kept))
    assert all(torch.equal(tensors[name], value) for name, value in before.items())


def test_cases_are_told_apart():
    for table in TABLES.values():
        names = [case.name for case in [*table.CASES, *table.WIDE]]
        assert len(names) == len(set(names)) and set(table.FEW) <= set(names)
        assert all(dataclasses.is_dataclass(case) and case.operation in TABLES for case in table.CASES)
        assert all("seed" in case.extras() or not case.options.get("dropout") for case in table.CASES)
