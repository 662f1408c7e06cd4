"""NaN and infinity come out exactly where the reference has them: none hidden, none spread wider."""

import pytest
import torch

from petx import functional, reference
from petx.functional import _cp_reconstruct
from tests.cases.expert_mixture import mixture
from tests.cases.gated_adapter import site
from tests.checks import outputs_and_grads

NAN, INF = float("nan"), float("inf")
LEAVES = ["x", "gate_bias", "gate_weight", "up_weight", "up_bias", "down_weight", "down_bias"]


def same_places(where, bad, **options):
    """Whether result and gradients are finite where the reference's are, with ``bad`` in one place of ``where``."""
    case = mixture("bad", batch=(3, 2), d=8, experts=4, rank=3, **options)
    tensors = case.inputs(torch.float32)
    with torch.no_grad():
        tensors[where].view(-1)[1] = bad
    got, wanted = (outputs_and_grads(run, tensors) for run in (case.run, case.expected))
    for name, value in wanted.items():
        assert torch.equal(got[name].isfinite(), value.isfinite()), name


@pytest.mark.parametrize("gate", ["token", "sample"])
@pytest.mark.parametrize("top_k", [None, 1, 3])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_one_bad_value(gate, top_k, activation):
    for where in LEAVES:
        for bad in (NAN, INF, -INF):
            same_places(where, bad, gate=gate, top_k=top_k, activation=activation)


@pytest.mark.parametrize(
    "case, mask",
    [
        (mixture("pool", pool=True, activation="gelu", gate="sample"), "pool_mask"),
        (mixture("pool-top", pool=True, activation="relu", gate="sample", top_k=2), "pool_mask"),
        (site("small", granularity="small", mask=True), "padding_mask"),
        (site("original", granularity="small", gate_input="original", mask=True), "padding_mask"),
    ],
    ids=lambda one: getattr(one, "name", ""),
)
@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_token_that_does_not_count_may_be_anything(case, mask, bad):
    """For the gate of its sample; its own row, and what sums over all rows, are as they are."""
    tensors, counts = case.inputs(torch.float32), case.extras()[mask]
    row = int(counts.flatten().logical_not().nonzero()[0])
    with torch.no_grad():
        tensors[case.ACTIVATIONS[0]].flatten(0, -2)[row, 1] = bad
    got, wanted = (outputs_and_grads(run, tensors) for run in (case.run, case.expected))
    for name, value in wanted.items():
        assert torch.equal(got[name].isfinite(), value.isfinite()), name
    rows = wanted["out"].flatten(0, -2).isfinite().all(-1)
    assert rows.sum() == len(rows) - 1 and not rows[row]


@pytest.mark.parametrize("gate", ["token", "sample"])
def test_experts_left_out_learn_nothing_from_gates_that_are_none(gate):
    """The first expert's logits are NaN, the largest there is; of the others the second's are the largest."""
    case = mixture("left out", batch=(3, 2), d=8, experts=4, rank=3, gate=gate, top_k=2)
    tensors = case.inputs(torch.float32)
    with torch.no_grad():
        tensors["gate_bias"][:] = torch.tensor([NAN, 9.0, -9.0, -9.0])
    for name in ("gate_bias", "gate_weight"):
        grad = outputs_and_grads(case.run, tensors)[name]
        assert grad[:2].isnan().all() and (grad[2:] == 0).all()


def threshold_grads(package, gate):
    """Gradients of a threshold of NaN, of core and cores too."""
    draw = torch.Generator().manual_seed(0)
    u, v, core = (torch.randn(shape, generator=draw) for shape in ((4, 6), (5, 4), (4, 4, 4)))
    found = []
    for leaf, call in (
        (core, lambda leaf, t: package.mode_cores(leaf, v, t, gate=gate)),
        (core[:1], lambda leaf, t: package.cp_reconstruct([torch.zeros(5, 6)], u, v, leaf, t, gate=gate)[0]),
    ):
        leaves = leaf.clone().requires_grad_(), torch.tensor([NAN], requires_grad=True)
        out = call(*leaves)
        found += torch.autograd.grad(out, leaves, torch.randn(out.shape, generator=draw))
    return found


@pytest.mark.parametrize("gate", ["hard", "soft"])
@pytest.mark.parametrize("sides", [True, False])
def test_gradients_of_a_threshold_that_is_no_number(gate, sides, monkeypatch):
    """The reference's: a hard gate keeps nothing, and has none; a soft one cuts nothing off."""
    if not sides:
        monkeypatch.setattr(_cp_reconstruct, "_keeps_sides", lambda *args: False)
    wanted = threshold_grads(reference, gate)
    for got, value in zip(threshold_grads(functional, gate), wanted, strict=True):
        torch.testing.assert_close(got, value)
    assert (wanted[1].item() == 0) == (gate == "hard")
