"""What is particular to `mode_update`; tests/operations/test_operations.py holds it to its reference."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from petx import functional, reference
from petx.functional._mode_update import MOST_MODES
from tests.cases.mode_update import CASES, modes
from tests.checks import outputs_and_grads

BY_NAME = {case.name: case for case in CASES}


@pytest.fixture
def path(request, monkeypatch):
    if request.param == "reference":
        monkeypatch.setattr("petx.ops._fused", set())


both_paths = pytest.mark.parametrize("path", ["fused", "reference"], indirect=True)


def test_saved_tensors_are_rank_wide():
    """Beside inputs, factors and the seed, x Uᵀ alone is kept: one tensor [N, R], whatever K and the masks."""
    case = modes("memory", batch=(8, 64), d_in=256, d_out=192, rank=8, dropout=0.1)
    tensors, extras = case.inputs(torch.float32), case.extras()
    held, known = [], {t.data_ptr() for t in (*tensors.values(), *extras.values())}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        case.call(tensors, extras)
    new = {t.data_ptr(): t.numel() for t in held if t.data_ptr() not in known}
    assert list(new.values()) == [8 * 64 * 8]


def test_projected_input_saves_nothing():
    case = modes("memory", batch=(8, 64), d_out=192, u=False, dropout=0.1)
    tensors, extras = case.inputs(torch.float32), case.extras()
    held, known = [], {t.data_ptr() for t in (*tensors.values(), *extras.values())}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        case.call(tensors, extras)
    assert not [t for t in held if t.numel() and t.data_ptr() not in known]


@both_paths
def test_dropout_draws_its_seed_from_torchs_generator(path):
    case = BY_NAME["dropout"]
    tensors = case.inputs(torch.float32, requires_grad=False)
    torch.manual_seed(3)
    first, second = (case.call(tensors, {}) for _ in range(2))
    torch.manual_seed(3)
    again = case.call(tensors, {})
    assert all(map(torch.equal, first, again)) and not any(map(torch.equal, first, second))


@pytest.mark.parametrize("rows", [1, 50, 700])
@pytest.mark.parametrize("p", [0.1, 0.9])
@pytest.mark.parametrize("shared", [False, True])
def test_dropout_masks_are_the_references(p, shared, rows):
    """With cores and V that are identities a result is a mask, and so is its part of x's gradient."""
    count, rank, seed = 3, 6, torch.tensor([99])
    x, eye = torch.ones(rows, rank, requires_grad=True), torch.eye(rank)
    options = dict(dropout=p, shared_mask=shared, seed=seed)
    results = functional.mode_update(x, None, eye, eye.expand(count, rank, rank), **options)
    masks = reference.dropout_mask(seed, (1 if shared else count, rows, rank), p, x.dtype)
    for k, y in enumerate(results):
        mask = masks[0 if shared else k]
        assert torch.equal(y, mask)
        assert torch.equal(torch.autograd.grad(y.sum(), x, retain_graph=True)[0], mask)


@both_paths
@pytest.mark.parametrize("used", [[0], [1], [0, 2], []])
@pytest.mark.parametrize("name", ["dropout", "dropout-shared-diagonal", "splits", "splits-diagonal"])
def test_results_that_nobody_uses(name, used, path):
    """They add nothing to any gradient; their bases and cores get none, or zeros."""
    case = BY_NAME[name]
    tensors = case.inputs(torch.float64)
    results, expected = case.run(tensors), case.expected(tensors)
    weights = [torch.randn_like(results[k]) for k in used]
    total, wanted = (
        sum((y[k] * w).sum() for k, w in zip(used, weights, strict=True)) + 0 * tensors["x"].sum()
        for y in (results, expected)
    )
    leaves = list(tensors.values())
    for name_, got, want in zip(
        tensors,
        torch.autograd.grad(total, leaves, allow_unused=True),
        torch.autograd.grad(wanted, leaves, allow_unused=True),
        strict=True,
    ):
        if want is None:
            assert got is None or not got.any(), name_
        else:
            torch.testing.assert_close(got, want, msg=lambda m, n=name_: f"{n}: {m}")


@pytest.mark.parametrize("projected", [False, True])
def test_hidden_gradients_of_projections_are_summed_in_float32(projected, device):
    """256, 1 and 1 of bfloat16, which has no 257: rounded after each, their sum would stay 256."""
    eye = torch.eye(8, device=device).bfloat16()
    x = torch.ones(3, 8, device=device).bfloat16().requires_grad_()
    cores = torch.stack([256 * eye, eye, eye])
    results = functional.mode_update(x, None if projected else eye, eye, cores)
    grad = torch.autograd.grad(results, x, [torch.ones_like(y) for y in results])[0]
    assert (grad == 258).all()


def test_gradients_of_bases_are_passed_on_without_a_copy():
    case = BY_NAME["three"]
    tensors = case.inputs(torch.float32)
    results = case.run(tensors)
    weights = [torch.randn_like(y) for y in results]
    bases = [tensors[f"base {k}"] for k in range(3)]
    grads = torch.autograd.grad(results, bases, weights)
    assert all(grad.data_ptr() == weight.data_ptr() for grad, weight in zip(grads, weights, strict=True))


@both_paths
def test_inputs_may_alias(path):
    """One base for two projections, x itself the third's: none is written to, and each use adds to the gradient."""
    case = BY_NAME["square"]
    tensors = case.inputs(torch.float64)
    tensors["base 1"], tensors["base 2"] = tensors["base 0"], tensors["x"]
    before = tensors["x"].detach().clone()
    results, expected = case.run(tensors), case.expected(tensors)
    leaves = [tensors[name] for name in ("x", "u", "v", "cores", "base 0")]
    for got, want in zip(results, expected, strict=True):
        torch.testing.assert_close(got, want)
        assert got.data_ptr() not in {leaf.data_ptr() for leaf in leaves}
    grads = (torch.autograd.grad(sum(y.square().sum() for y in ys), leaves) for ys in (results, expected))
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want)
    assert torch.equal(tensors["x"], before)


def test_projected_input_is_the_same_update():
    """One product x Uᵀ, made outside, serves the call as the one inside does."""
    t = BY_NAME["dropout"].inputs(torch.float64)
    arguments = BY_NAME["dropout"].arguments(t) | dict(dropout=0.3, seed=torch.tensor([5]))
    whole = functional.mode_update(**arguments)
    parts = functional.mode_update(**arguments | dict(x=t["x"] @ t["u"].T, u=None))
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    """A recomputed forward has the same masks, whether the seed is given or drawn."""
    case = BY_NAME["dropout"]

    def step(run, extras):
        torch.manual_seed(4)
        tensors = case.inputs(torch.float32)
        names = list(tensors)
        results = run(lambda *values: case.call(dict(zip(names, values, strict=True)), extras), *tensors.values())
        sum(y.square().sum() for y in results).backward()
        return [*results, *(t.grad for t in tensors.values())]

    def checkpointed(call, *values):
        return checkpoint(call, *values, use_reentrant=reentrant)

    for extras in (case.extras(), {}):
        plain = step(lambda call, *values: call(*values), extras)
        assert all(map(torch.equal, plain, step(checkpointed, extras)))


@both_paths
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype, path):
    """The result is autocast's dtype, gradients are the leaves'; float64 is left alone."""
    case = BY_NAME["dropout"]
    with torch.autocast("cpu", dtype=dtype):
        got = outputs_and_grads(case.run, case.inputs(torch.float32))
        wide = case.run(case.inputs(torch.float64))
    assert all(value.dtype == (dtype if name.startswith("out") else torch.float32) for name, value in got.items())
    assert all(y.dtype == torch.float64 for y in wide)
    plain = outputs_and_grads(case.run, case.inputs(torch.float32))
    for name, value in plain.items():
        error = (got[name].float() - value).norm() / value.norm()
        assert error < 4 * torch.finfo(dtype).eps, (name, error)


@both_paths
def test_dtypes_may_differ(path):
    """Everything is computed in x's dtype; each gradient comes back in its leaf's."""
    case = BY_NAME["dropout"]
    dtypes = dict(x=torch.float32, u=torch.float64, v=torch.bfloat16, cores=torch.float64)
    tensors = {
        name: t.detach().to(dtypes.get(name, torch.bfloat16)).requires_grad_()
        for name, t in case.inputs(torch.float64).items()
    }
    for name, value in outputs_and_grads(case.run, tensors).items():
        wanted = torch.float32 if name.startswith("out") else tensors[name].dtype
        assert value.dtype == wanted and value.isfinite().all(), name


def test_function_transforms():
    """torch.func differentiates and batches it: by the reference."""
    t = {name: v.detach() for name, v in BY_NAME["three"].inputs(torch.float64).items()}
    arguments = BY_NAME["three"].arguments(t)
    loss = lambda v: sum(y.square().sum() for y in functional.mode_update(**arguments | dict(v=v)))  # noqa: E731
    v = t["v"].clone().requires_grad_()
    torch.testing.assert_close(torch.func.grad(loss)(t["v"]), torch.autograd.grad(loss(v), v)[0])
    call = lambda x: functional.mode_update(x, t["u"], t["v"], t["cores"])  # noqa: E731
    for batched, whole in zip(torch.func.vmap(call)(t["x"]), call(t["x"]), strict=True):
        torch.testing.assert_close(batched, whole)


X, U, V, CORES = (4, 3), (2, 3), (5, 2), (3, 2, 2)


@both_paths
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(x=torch.zeros(4, 3, dtype=torch.int64)), "x must be floating"),
        (dict(x=None), "x must be a tensor .*got NoneType"),
        (dict(cores=None), "cores must be a tensor .*got NoneType"),
        (dict(x=torch.tensor(1.0)), r"x must be floating \[..., d_in\]"),
        (dict(x=torch.zeros(4, 2)), r"u must be floating \[2, 2\], got torch.float32 \[2, 3\]"),
        (dict(x=torch.zeros(4, 3), u=None), r"x must be \[..., R = 2\] if u is None"),
        (dict(x=torch.zeros(4, 0), u=torch.zeros(2, 0)), "d_in of at least 1"),
        (dict(u=torch.zeros(3, 3)), r"u must be floating \[2, 3\]"),
        (dict(u=[1.0]), "u must be a tensor"),
        (dict(v=torch.zeros(5, 3)), r"v must be floating \[any, 2\]"),
        (dict(v=torch.zeros(5, 2, device="meta")), "v must be on the device cpu"),
        (dict(cores=torch.zeros(3, 2, 4)), r"cores must be floating \[3, 4, 4\]"),
        (dict(cores=torch.zeros(MOST_MODES + 1, 2, 2)), "K from 1 to 4"),
        (dict(cores=torch.zeros(0, 2)), "K from 1 to 4"),
        (dict(cores=torch.zeros(3, 0)), "rank R must be at least 1"),
        (dict(cores=torch.zeros(2)), r"cores must be \[K, R, R\]"),
        (dict(bases=[torch.zeros(4, 5)] * 2), "bases must be 3 tensors, one for each core, got 2"),
        (dict(bases=[torch.zeros(4, 5)] * 2 + [torch.zeros(4, 6)]), r"bases\[2\] must be floating \[4, 5\]"),
        (dict(bases=[torch.zeros(4, 5), None, torch.zeros(4, 5)]), r"bases\[1\] must be \[4, 5\], got None"),
        (dict(dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (dict(dropout=float("nan")), "dropout must be in"),
    ],
)
def test_bad_input(changes, message, path):
    good = dict(x=torch.zeros(X), u=torch.zeros(U), v=torch.zeros(V), cores=torch.zeros(CORES))
    functional.mode_update(**good)
    with pytest.raises(ValueError, match=f"mode_update: .*{message}"):
        functional.mode_update(**good | changes)


@both_paths
@pytest.mark.parametrize("seed", [torch.tensor([1, 2]), torch.tensor([1.0]), 3], ids=str)
def test_bad_seed(seed, path):
    tensors = dict(x=torch.zeros(X), u=torch.zeros(U), v=torch.zeros(V), cores=torch.zeros(CORES))
    with pytest.raises(ValueError, match="mode_update: seed must be an int64 tensor of one element"):
        functional.mode_update(**tensors, dropout=0.5, seed=seed)


@both_paths
def test_seed_of_no_dimension(path):
    case = BY_NAME["dropout"]
    tensors, extras = case.inputs(torch.float32), case.extras()
    scalar = case.call(tensors, {"seed": extras["seed"][0]})
    assert all(map(torch.equal, scalar, case.call(tensors, extras)))
