"""What is particular to `query_transformation`; tests/operations/test_operations.py holds it to its reference."""

import pytest
import torch

from petx import functional, nn, ops, reference
from tests.operations.test_casts import Called

compiled = pytest.mark.skipif(ops._C is None, reason="needs the compiled library's operators")


@pytest.fixture
def path(request, monkeypatch):
    if request.param == "reference":
        monkeypatch.setattr("petx.ops._fused", set())


both_paths = pytest.mark.parametrize("path", ["fused", "reference"], indirect=True)


def leaves(*batch, d=8, dtype=torch.float32):
    torch.manual_seed(0)
    shapes = (*batch, d), (d,), (d,), (*batch, d)
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


@compiled
def test_slices_are_read_where_they_lie_and_the_gradient_of_to_is_the_results():
    """Rows of a block of tokens, and a gradient that is a slice of a concatenation's: no operator copies them."""
    whole, scale, shift, to = leaves(2, 9)
    rows, dout = whole.detach()[:, 3:8].requires_grad_(), torch.randn(2, 12, 8)[:, 7:]
    to = to.detach()[:, 4:].requires_grad_()
    with Called() as called:
        out = functional.query_transformation(rows, scale, shift, to)
        found = torch.autograd.grad(out, (rows, scale, shift, to), dout)
    assert set(called.names) <= {"query_transformation_fwd", "query_transformation_bwd", "detach"}
    assert found[3].data_ptr() == dout.data_ptr() and found[3].stride() == dout.stride()
    wanted = reference.query_transformation(rows, scale, shift, to)
    torch.testing.assert_close(out, wanted)
    for got, grad in zip(found, torch.autograd.grad(wanted, (rows, scale, shift, to), dout), strict=True):
        torch.testing.assert_close(got, grad)


@compiled
def test_rows_that_are_nowhere_even_are_copied():
    """Of turned tensors, of samples that lie apart by no one number, and of one row, or one sample, for several."""
    _, scale, shift, _ = leaves(1)
    base = torch.randn(3, 5, 4, 8)
    for x in (
        torch.randn(8, 6).T,
        base[:, :3, ::2],
        base.permute(1, 0, 2, 3)[:, :, :3],
        torch.randn(8).expand(4, 5, 8),
        torch.randn(4, 1, 1).expand(4, 5, 8),
        torch.randn(3, 1, 5, 8).expand(3, 4, 5, 8),
        torch.randn(1, 4, 5, 8).expand(3, 4, 5, 8),
        torch.randn(5, 8).expand(3, 4, 5, 8),
        torch.randn(3, 4, 1, 8).expand(3, 4, 5, 8),
    ):
        to, wanted = torch.randn(x.shape), reference.query_transformation
        torch.testing.assert_close(
            functional.query_transformation(x, scale, shift, to), wanted(x.contiguous(), scale, shift, to)
        )
        torch.testing.assert_close(
            functional.query_transformation(to, scale, shift, x), wanted(to, scale, shift, x.contiguous())
        )


@compiled
@pytest.mark.parametrize("dim", [0, 1, 2, (0, 2), (1, 2)], ids=str)
def test_a_gradient_of_means_has_one_value_for_many(dim):
    """The result's gradient is an expanded tensor, x one of a sample's rows for several samples."""
    samples, scale, shift, to = leaves(3, 1, 5)
    x, to = samples.detach().requires_grad_(), to.detach().expand(3, 4, 5, 8)
    found, wanted = (
        torch.autograd.grad(
            operation(x.expand(3, 4, 5, 8), scale, shift, to).mean(dim).square().sum(), (x, scale, shift)
        )
        for operation in (functional.query_transformation, reference.query_transformation)
    )
    for got, grad in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, grad)


@compiled
def test_what_it_is_added_to_is_not_kept():
    x, scale, shift, to = leaves(3, 5)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        functional.query_transformation(x, scale, shift, to)
    assert sorted(kept) == sorted([x.data_ptr(), scale.data_ptr()])


@both_paths
def test_the_wider_dtype_is_the_results(path):
    """A narrow x beside a wide stream, under autocast too: as an addition has it."""
    x, scale, shift, to = leaves(3, 5)
    narrow = x.detach().bfloat16().requires_grad_()
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            for given, added in ((narrow, to), (x, to.detach().bfloat16().requires_grad_()), (x, to)):
                out = functional.query_transformation(given, scale, shift, added)
                assert out.dtype == torch.float32
                grads = torch.autograd.grad(out.sum(), (given, scale, added))
                assert [grad.dtype for grad in grads] == [given.dtype, torch.float32, added.dtype]
            assert functional.query_transformation(narrow, scale, shift).dtype == torch.bfloat16


@both_paths
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(x=None), r"x must be a tensor \[..., d\]"),
        (dict(x=torch.zeros(2, 0)), r"x must be \[..., d\] with d of at least 1, got \[2, 0\]"),
        (dict(x=torch.zeros(())), "x must be floating"),
        (dict(x=torch.zeros(3, 8, dtype=torch.int64)), "x must be floating"),
        (dict(scale=torch.zeros(7)), r"scale must be floating \[8\], got torch.float32 \[7\]"),
        (dict(shift=torch.zeros(3, 8)), r"shift must be floating \[8\]"),
        (dict(shift=None), r"shift must be \[8\], got None"),
        (dict(scale=torch.zeros(8, device="meta")), "scale must be on the device cpu"),
        (dict(to=torch.zeros(8)), r"to must be floating \[3, 8\], got torch.float32 \[8\]"),
        (dict(to=1.0), r"to must be a tensor \[3, 8\]"),
        (dict(factor=float("nan")), "factor must be finite"),
        (dict(factor=None), "factor must be finite"),
        (dict(factor=1e300), "factor must be finite in float32"),
    ],
)
@pytest.mark.parametrize("gradients", [True, False])
def test_bad_input(changes, message, gradients, path):
    good = dict(zip(("x", "scale", "shift", "to"), leaves(3), strict=True))
    with torch.set_grad_enabled(gradients):
        functional.query_transformation(**good)
        with pytest.raises(ValueError, match=f"query_transformation: .*{message}"):
            functional.query_transformation(**good | changes)


@both_paths
def test_layer(path):
    layer = nn.QueryTransformation(8, factor=0.3)
    x, *_, to = leaves(3, 5)
    wanted = reference.query_transformation(x, layer.scale, layer.shift, to, factor=0.3)
    torch.testing.assert_close(layer(x, to), wanted)
    torch.testing.assert_close(layer(x), reference.query_transformation(x, layer.scale, layer.shift, factor=0.3))
    with pytest.raises(ValueError, match=r"QueryTransformation: to must be a tensor \[3, 5, 8\] like x, or None"):
        layer(x, to[0])


@both_paths
@pytest.mark.parametrize("where", ["x", "scale", "shift", "to"])
def test_not_finite_exactly_where_the_reference_is_not(where, path):
    for value in (float("nan"), float("inf")):
        found = []
        for operation in (functional.query_transformation, reference.query_transformation):
            given = dict(zip(("x", "scale", "shift", "to"), leaves(3), strict=True))
            with torch.no_grad():
                given[where].view(-1)[3] = value
            out = operation(**given)
            found.append([out, *torch.autograd.grad(out.sum(), list(given.values()))])
        for got, wanted in zip(*found, strict=True):
            assert torch.equal(got.isfinite(), wanted.isfinite())
