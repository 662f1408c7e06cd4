"""Casts around an operator: however many parameters, one call of torch's for all."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from petx import ops
from petx.certify.cases.cp_reconstruct import reconstruct
from petx.functional._operation import operands
from tests.cases.expert_mixture import mixture
from tests.cases.gated_adapter import BART_TAIL, site
from tests.cases.mode_cores import cores
from tests.cases.mode_update import modes
from tests.cases.query_transformation import transformation

pytestmark = pytest.mark.skipif(ops._C is None, reason="needs the compiled library's operators")
BESIDE = [
    site("casts", granularity="large", **BART_TAIL),
    mixture("casts", gate="token"),
    modes("casts", batch=(5,)),
    transformation("casts"),
]
ALONE = [cores("casts", gate="soft"), reconstruct("casts", gate="soft")]


class Called(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))

    def casts(self):
        """Calls that cast one tensor, and several."""
        return self.names["_to_copy"] + self.names["copy_"], self.names["_foreach_copy_"]


def leaves_of(case, dtype):
    """The case's tensors in bfloat16, its parameters in ``dtype``."""
    tensors = case.inputs(torch.bfloat16, requires_grad=False)
    narrow = [name for name in tensors if name in ("h", "x", "to") or name.startswith("base")]
    return {
        name: tensor.to(torch.bfloat16 if name in narrow else dtype).requires_grad_()
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
    } | {name: tensor for name, tensor in tensors.items() if not tensor.is_floating_point()}


def assert_casts(case, tensors, forward, backward):
    """Calls of torch's that cast several tensors at once; none casts one."""
    with Called() as called:
        results = case.run(tensors)
    assert called.casts() == (0, forward)
    results = [results] if isinstance(results, torch.Tensor) else list(results)
    leaves = [tensor for tensor in tensors.values() if tensor.requires_grad]
    with Called() as called:
        grads = torch.autograd.grad(results, leaves, [torch.ones_like(y) for y in results])
    assert called.casts() == (0, backward)
    assert [grad.dtype for grad in grads] == [leaf.dtype for leaf in leaves]


@pytest.mark.parametrize("case", BESIDE, ids=lambda case: case.operation)
@pytest.mark.parametrize(
    ("dtype", "forward", "backward"),
    [
        (torch.bfloat16, 0, 0),  # the gradients are summed in float32 and stored as the parameters are
        (torch.float32, 1, 0),  # the parameters, which are kept for the backward
        (torch.float16, 1, 1),  # the parameters, and the gradients
    ],
    ids=["narrow", "wide", "other"],
)
def test_one_cast_for_all_parameters(case, dtype, forward, backward):
    assert_casts(case, leaves_of(case, dtype), forward, backward)


@pytest.mark.parametrize("case", ALONE, ids=lambda case: case.operation)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["narrow", "wide"])
def test_operations_of_parameters_alone_cast_nothing(case, dtype):
    assert_casts(case, case.inputs(dtype), 0, 0)


def test_what_is_cast_and_what_is_not():
    wide, turned = torch.arange(6.0).reshape(2, 3), torch.arange(6.0, dtype=torch.bfloat16).reshape(3, 2).T
    ready, flags = torch.ones(3, dtype=torch.bfloat16), torch.tensor([True])
    found = operands((wide, None, turned, ready, flags), torch.bfloat16)
    assert found[1] is None and found[3] is ready and found[4] is flags
    for got, given in ((found[0], wide), (found[2], turned)):
        assert got.dtype == torch.bfloat16 and got.is_contiguous() and torch.equal(got, given.bfloat16())
