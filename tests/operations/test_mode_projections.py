"""The frozen projections and the update beside them as one function: equal to the projections, then `mode_update`."""

import pytest
import torch
import torch.nn.functional as F

from petx import functional
from petx.functional._mode_projections import projected_update
from petx.functional._mode_update import row_stride

COUNT, SEED = 3, torch.tensor([7])


def tensors(dtype=torch.float64, rank=4, d_in=7, d_out=5, batch=(2, 5), core="full"):
    draw = torch.Generator().manual_seed(0)
    shapes = dict(
        x=(*batch, d_in), u=(rank, d_in), v=(d_out, rank), weight=(COUNT * d_out, d_in), bias=(COUNT * d_out,)
    )
    shapes["cores"] = (COUNT, rank, rank) if core == "full" else (COUNT, rank)
    made = {name: torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for name, shape in shapes.items()}
    return {name: t.requires_grad_(name not in ("weight", "bias")) for name, t in made.items()}


def together(t, projected=False, copies=None, **options):
    given = F.linear(t["x"], t["u"]) if projected else None
    u = None if projected else t["u"]
    rest = (options.get("dropout", 0.0), options.get("shared_mask", False), SEED, copies)
    return projected_update(t["x"], given, u, t["v"], t["cores"], t["weight"], t["bias"], *rest)


def apart(t, projected=False, **options):
    width = t["v"].shape[0]
    parts = zip(t["weight"].split(width), [None] * COUNT if t["bias"] is None else t["bias"].split(width), strict=True)
    bases = [F.linear(t["x"], *part) for part in parts]
    read, u = (F.linear(t["x"], t["u"]), None) if projected else (t["x"], t["u"])
    return functional.mode_update(read, u, t["v"], t["cores"], bases, seed=SEED, **options)


def results(run, t, used=range(COUNT), **options):
    ys = run(t, **options)
    leaves = [leaf for leaf in t.values() if leaf is not None and leaf.requires_grad]
    loss = sum(((k + 1) * ys[k]).sin().sum() for k in used)
    return [*ys, *torch.autograd.grad(loss, leaves, allow_unused=True)]


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("options", [{}, dict(dropout=0.4), dict(dropout=0.4, shared_mask=True)], ids=str)
@pytest.mark.parametrize("core", ["full", "diagonal"])
def test_equals_the_projections_and_the_update(core, options, projected):
    t = tensors(core=core)
    for found, wanted in zip(
        results(together, t, projected=projected, **options),
        results(apart, t, projected=projected, **options),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("projected", [False, True])
def test_a_backward_under_an_autocast_that_the_forward_was_not_under(projected):
    """It keeps the forward's dtype, as torch's own linear does."""
    t = tensors(torch.float32)
    wanted = results(together, t, projected=projected)
    ys = together(t, projected=projected)
    leaves = [leaf for leaf in t.values() if leaf.requires_grad]
    loss = sum(((k + 1) * ys[k]).sin().sum() for k in range(COUNT))
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(loss, leaves)
    rounded = dict(rtol=0.05, atol=0.2) if projected else dict(rtol=0, atol=0)  # x Uᵀ is torch's product here
    for one, other in zip(found, wanted[COUNT:], strict=True):
        torch.testing.assert_close(one, other, **rounded)


@pytest.mark.parametrize("missing", ["bias", "x's gradient", "a result", "every gradient"])
def test_what_may_be_missing(missing):
    t, used = tensors(), range(COUNT)
    if missing == "bias":
        t["bias"] = None
    elif missing == "x's gradient":
        t["x"].requires_grad_(False)
    elif missing == "a result":
        used = (0, 2)
    for found, wanted in zip(
        results(together, t, used, dropout=0.4), results(apart, t, used, dropout=0.4), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        for found, wanted in zip(together(t), apart(t), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_the_weight_gets_no_gradient_and_autograd_is_exact():
    t = tensors(batch=(2, 2), rank=2, d_in=3, d_out=2)
    names = ("x", "u", "v", "cores")
    assert torch.autograd.gradcheck(
        lambda *values: together(t | dict(zip(names, values, strict=True)), dropout=0.5), [t[name] for name in names]
    )


def test_under_autocast_and_beside_cast_factors():
    """Results in the autocast dtype, gradients in the leaves' own."""
    t = tensors(torch.float32, rank=8, d_in=32, d_out=16)
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = results(together, t), results(apart, t)
        copies = tuple(t[name].detach().bfloat16() for name in ("u", "v", "cores"))
        given = results(together, t, copies=copies)
    for one, two, other in zip(found, given, wanted, strict=True):
        assert one.dtype == two.dtype == other.dtype
        assert torch.equal(one, two)
        assert (one - other).norm() <= 0.02 * other.norm()


def test_by_the_reference_and_under_transforms(monkeypatch):
    t = tensors()
    wanted = apart(t)
    monkeypatch.setattr("petx.ops._fused", set())
    found, direction = together(t), torch.ones_like(t["x"])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    _, tangents = torch.func.jvp(lambda x: together(t | dict(x=x)), (t["x"].detach(),), (direction,))
    _, expected = torch.func.jvp(lambda x: apart(t | dict(x=x)), (t["x"].detach(),), (direction,))
    for one, other in zip(tangents, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_rows_that_may_lie_apart():
    whole = torch.zeros(2, 3, 12)
    assert row_stride(whole) == 12 and row_stride(whole[..., 4:8]) == 12
    assert row_stride(whole[..., ::2]) is None and row_stride(whole[:, :2, :4]) is None
    assert row_stride(whole[:1, :1, 4:8]) == 4 and row_stride(torch.zeros(1, 4).expand(3, 4)) is None
    assert row_stride(whole.transpose(0, 1)[..., :4]) is None


def test_the_operator_refuses_bases_that_lie_otherwise():
    t = tensors(torch.float32)
    call = torch.ops.petx.mode_update_fwd
    factors = [t[name].detach() for name in ("x", "u", "v", "cores")]
    wide = torch.zeros(2, 5, 30)
    for bases, words in (
        ([wide[..., :10:2], wide[..., 10:20:2], wide[..., 20::2]], "dense rows that lie evenly apart"),
        ([wide[..., :5], wide[..., 5:10], torch.zeros(2, 5, 5)], "rows 30 values apart like bases"),
    ):
        with pytest.raises(RuntimeError, match=words):
            call(*factors, bases, None, 0.0, False)
        expected = functional.mode_update(*factors, [base.contiguous() for base in bases])
        for one, other in zip(functional.mode_update(*factors, bases), expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("projected", [False, True])
def test_gradients_in_a_batch(projected):
    t = tensors()
    leaves = [leaf for leaf in t.values() if leaf.requires_grad]
    whole = [torch.cat(run(t, projected=projected, dropout=0.4), -1) for run in (together, apart)]
    directions = torch.randn(3, *whole[0].shape, dtype=torch.float64)
    found = torch.autograd.grad(whole[0], leaves, directions, is_grads_batched=True)
    for k, direction in enumerate(directions):
        wanted = torch.autograd.grad(whole[1], leaves, direction, retain_graph=True)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one[k], other, rtol=1e-10, atol=1e-10)
