"""Gradients in their leaves' own types: rounded where they are stored, by no launch of its own."""

import pytest
import torch

from petx.certify.cases.cp_reconstruct import reconstruct
from tests.cases.expert_mixture import mixture
from tests.cases.gated_adapter import BART_TAIL, site
from tests.cases.mode_cores import cores
from tests.cases.mode_update import modes
from tests.cases.query_transformation import transformation
from tests.checks import outputs, weights_of
from tests.operations.test_casts import Called, leaves_of

CASES = [
    site("large", batch=(1, 9), d=20, r=6, r_g=5, granularity="large", **BART_TAIL),
    site("small", batch=(1, 9), d=20, r=6, granularity="small"),
    site("middleY", batch=(1, 9), d=20, r=6, granularity="middleY", middle_y="sigmoid", x=False),
    mixture("token", batch=(1, 9), gate="token"),
    mixture("hybrid", batch=(1, 9), gate="sample"),
    mixture("uniform", batch=(1, 9)),
    modes("full", batch=(5,), d_in=20, d_out=12, rank=7),
    modes("diagonal", batch=(5,), core="diagonal"),
    transformation("apart", batch=(2, 33), d=20, apart=3),
]
# Of parameters alone, whose type is the call's: one gradient is narrow or wide as its leaf is.
ALONE = [
    cores("each", 3, 6, gate="soft", threshold=6),
    cores("diagonal", 3, 6, core="diagonal", gate="soft"),
    reconstruct("full", 2, 9, 12, 5, gate="soft", threshold=2),
    reconstruct("diagonal", 2, 9, 12, 5, core="diagonal"),
]


def grads_of(case, tensors, emulator):
    """Gradients by name, the launches that made them, and torch's casts around these."""
    results = outputs(case.run(tensors))
    leaves = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    weights = weights_of(results)
    emulator.library.simt_reset_counters()
    with Called() as called:
        found = torch.autograd.grad(results, list(leaves.values()), weights)
    assert [grad.dtype for grad in found] == [leaf.dtype for leaf in leaves.values()]
    return dict(zip(leaves, found, strict=True)), emulator.counters().launches, sum(called.casts())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_narrow_gradients_are_the_wide_ones_rounded(case, emulator, monkeypatch):
    """Beside bfloat16 activations: float32 parameters' gradients, rounded by torch, are those of bfloat16 parameters
    bit by bit; and these take no launch more, where the hybrid mixture takes its weights' as they come."""
    monkeypatch.setenv("PETX_EXPERT_MIXTURE", "hybrid" if case.name == "hybrid" else "fused")
    narrow, launches, casts = grads_of(case, leaves_of(case, torch.bfloat16), emulator)
    wide, wide_launches, wide_casts = grads_of(case, leaves_of(case, torch.float32), emulator)
    assert casts == wide_casts == 0 and launches == wide_launches
    for name, grad in narrow.items():
        assert torch.equal(grad, wide[name].bfloat16()), name


@pytest.mark.parametrize("case", ALONE, ids=str)
def test_operations_of_parameters_alone_round_too(case, emulator):
    """The first leaf decides what is computed in; the others' gradients come in their own types."""
    tensors = case.inputs(torch.bfloat16)
    narrow, launches, casts = grads_of(case, tensors, emulator)
    first, *others = (name for name in narrow if not name.startswith("weight "))
    mixed = tensors | {name: tensors[name].detach().float().requires_grad_() for name in others}
    wide, wide_launches, wide_casts = grads_of(case, mixed, emulator)
    assert casts == wide_casts == 0 and launches == wide_launches
    for name, grad in narrow.items():
        assert torch.equal(grad, wide[name].bfloat16()), name
