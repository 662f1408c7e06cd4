"""The compiled `gated_adapter` against its reference, over the case table."""

import pytest
import torch

from petx import functional, ops
from tests.cases import BART_TAIL, CASES, T5_TAIL, site

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
BY_NAME = {case.name: case for case in CASES}
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def test_kernel_is_built():
    assert ops.why_absent("gated_adapter", "cpu") is None


def outputs_and_grads(call, tensors, weights):
    """Name -> result of one forward and backward of `(call(tensors) * weights).sum()`."""
    out = call(tensors)
    grads = torch.autograd.grad(out, list(tensors.values()), weights.to(out.dtype), allow_unused=True)
    return {"out": out.detach()} | dict(zip(tensors, grads, strict=True))


def relative(value, exact):
    return ((value.double() - exact).norm() / exact.norm().clamp(min=1e-30)).item()


@by_case
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernel_matches_reference(case, dtype):
    """Error against float64 at most twice torch's own in the same dtype, or the dtype's own resolution."""
    tensors = case.inputs(dtype)
    weights = torch.randn(case.shapes["h"], generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    exact_inputs = {name: t.detach().double().requires_grad_() for name, t in tensors.items()}
    exact = outputs_and_grads(case.expected, exact_inputs, weights)
    own = outputs_and_grads(case.expected, tensors, weights)
    got = outputs_and_grads(case.run, tensors, weights)
    # Below a few units in the last place, which of two results is closer is chance.
    floor = 1e-13 if dtype == torch.float64 else (8 if dtype == torch.float32 else 4) * torch.finfo(dtype).eps
    for name, value in got.items():
        if exact[name] is None:  # an argument that this case does not read
            assert value is None or not value.any(), name
            continue
        assert value.dtype == dtype and value.shape == exact[name].shape, name
        assert torch.isfinite(value).all(), name
        error, torch_error = relative(value, exact[name]), relative(own[name], exact[name])
        assert error <= max(2 * torch_error, floor), f"{name}: error {error:.2e}, torch's own {torch_error:.2e}"


TINY = dict(batch=(2, 2), d=4, r=2, r_g=2)


@pytest.mark.parametrize(
    "case",
    [
        site("none", **TINY, x=False),
        site("large", **TINY, granularity="large", **BART_TAIL),
        site("middleX", **TINY, granularity="middleX", **BART_TAIL),
        site("middleX-original", **TINY, granularity="middleX", gate_input="original"),
        site("middleY", **TINY, granularity="middleY", **T5_TAIL),
        site("middleY-sigmoid", **TINY, granularity="middleY", middle_y="sigmoid"),
        site("small", **TINY, granularity="small", mask=True, **BART_TAIL),
        site("small-original", **TINY, granularity="small", gate_input="original", residual=True, norm="rms"),
        site("exact-pair", **TINY, granularity="large", heads=2, activation="gelu"),
        site("parallel", **TINY, granularity="large", placement="parallel", residual=True),
        site("value", **TINY, d_x=3, placement="parallel"),
    ],
    ids=lambda case: case.name,
)
def test_gradcheck(case):
    tensors = case.inputs(torch.float64)
    names = list(tensors)
    assert torch.autograd.gradcheck(
        lambda *values: case.run(dict(zip(names, values, strict=True))), list(tensors.values())
    )


@pytest.mark.parametrize("name", ["splits", "splits-small", "splits-middleX", "odd-pair", "one-token"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_for_any_number_of_threads(name, dtype):
    case, before = BY_NAME[name], torch.get_num_threads()
    tensors = case.inputs(dtype)
    weights = torch.randn(case.shapes["h"], generator=torch.Generator().manual_seed(2))
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(outputs_and_grads(case.run, tensors, weights))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for key, value in results[0].items():
            assert torch.equal(value, other[key]), key


@pytest.mark.parametrize("name", ["large-bart", "middleX", "middleY", "small-masked", "parallel-large", "pair"])
def test_gradients_of_every_subset(name):
    """Asking for one argument's gradient, or for all but one, changes none of the others."""
    case = BY_NAME[name]
    full = outputs_and_grads(case.run, case.inputs(torch.float32), torch.ones(case.shapes["h"]))
    for chosen in case.shapes:
        for wanted in ({chosen}, set(case.shapes) - {chosen}):
            tensors = case.inputs(torch.float32, requires_grad=False)
            leaves = [tensors[n].requires_grad_() for n in tensors if n in wanted]
            grads = torch.autograd.grad(case.run(tensors).sum(), leaves)
            for leaf_name, grad in zip([n for n in tensors if n in wanted], grads, strict=True):
                assert torch.equal(grad, full[leaf_name]), (chosen, leaf_name)


@pytest.mark.parametrize("name", ["large-bart", "small-masked", "middleX", "value"])
@pytest.mark.parametrize("rows", [(0, 5), (3, 0)], ids=["no-samples", "no-tokens"])
def test_empty_batch(name, rows):
    case = BY_NAME[name]
    shapes = {n: (*rows, s[-1]) if n in ("h", "x") else s for n, s in case.shapes.items()}
    empty = type(case)(case.name, shapes, case.options, case.mask)
    tensors = empty.inputs(torch.float32)
    result = outputs_and_grads(empty.run, tensors, torch.ones(shapes["h"]))
    for key, value in result.items():
        assert value.shape == (shapes["h"] if key == "out" else shapes[key])
        assert not value.any()


@pytest.mark.parametrize("name", ["large-bart", "small", "value"])
def test_strided_inputs(name):
    case = BY_NAME[name]
    tensors = case.inputs(torch.float32)
    weights = torch.randn(case.shapes["h"], generator=torch.Generator().manual_seed(2))
    plain = outputs_and_grads(case.run, tensors, weights)

    def strided(t):  # every second column of a wider tensor, dimensions stored in reverse
        wide = torch.zeros(*(2 * s for s in reversed(t.shape)))
        view = wide[tuple(slice(None, None, 2) for _ in t.shape)].permute(*reversed(range(t.dim())))
        return view.copy_(t.detach()).requires_grad_() if t.dim() > 1 else t

    views = {n: strided(t) for n, t in tensors.items()}
    assert not views["h"].is_contiguous()
    other = outputs_and_grads(case.run, views, weights)
    for key, value in plain.items():
        assert torch.equal(value, other[key]), key


def test_inputs_may_alias():
    case = BY_NAME["large-bart"]
    tensors = case.inputs(torch.float64)
    tensors["x"] = tensors["h"]
    out = case.run(tensors)
    expected = case.expected(tensors)
    torch.testing.assert_close(out, expected)
    grads = [torch.autograd.grad(o.sum(), tensors["h"])[0] for o in (out, expected)]
    torch.testing.assert_close(*grads)


def test_inputs_are_left_alone():
    case = BY_NAME["splits"]
    tensors = case.inputs(torch.float32)
    before = {n: t.detach().clone() for n, t in tensors.items()}
    weights = torch.randn(case.shapes["h"])
    kept = weights.clone()
    outputs_and_grads(case.run, tensors, weights)
    assert torch.equal(weights, kept)
    assert all(torch.equal(tensors[n], before[n]) for n in before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sixteen_bit_conversion_is_exact(dtype):
    """With a zero adapter the site is load and store: every finite value comes back, and sums round as torch's."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[every.isfinite()].reshape(1, -1)
    zero = every.new_zeros(1, every.shape[1]), None, every.new_zeros(every.shape[1], 1), None
    assert torch.equal(
        functional.gated_adapter(every, None, *zero).view(torch.int16) & 0x7FFF, every.view(torch.int16) & 0x7FFF
    )
    x = every.roll(12_345, 1)
    total = functional.gated_adapter(every, x, *zero, residual=True)
    torch.testing.assert_close(total, (every.float() + x.float()).to(dtype), rtol=0, atol=0)
    nan = torch.full((1, 8), float("nan"), dtype=dtype)
    assert (
        functional.gated_adapter(nan, None, *(z if z is None else z[:, :8] if z.shape[0] == 1 else z[:8] for z in zero))
        .isnan()
        .all()
    )


@pytest.mark.parametrize("p", [0.1, 0.9])
def test_dropout_mask_is_the_references(p):
    """Forward and backward zero exactly the elements that the reference's mask drops."""
    from petx import reference

    h = torch.ones(4, 50, 30, requires_grad=True)
    weights = (torch.zeros(2, 30), None, torch.zeros(30, 2), None)
    seed = torch.tensor([99])
    out = functional.gated_adapter(h, None, *weights, dropout=p, seed=seed)
    mask = reference.dropout_mask(seed, tuple(h.shape), p, h.dtype)
    assert torch.equal(out, mask)
    assert torch.equal(torch.autograd.grad(out.sum(), h)[0], mask)


def test_dropout_draws_its_seed_from_torchs_generator():
    case = BY_NAME["large-bart"]
    tensors = case.inputs(torch.float32, requires_grad=False)
    call = lambda: functional.gated_adapter(**tensors, **case.options)  # noqa: E731
    torch.manual_seed(3)
    first, second = call(), call()
    torch.manual_seed(3)
    assert torch.equal(call(), first) and not torch.equal(first, second)


def test_saved_tensors_are_rank_wide():
    """Only inputs, parameters, the seed, statistics and [N, r] tensors are kept for the backward."""
    case = site(
        "memory", batch=(8, 64), d=256, r=8, r_g=8, granularity="large", dropout=0.1, residual=True, norm="layer"
    )
    tensors = case.inputs(torch.float32)
    held, known = [], {t.data_ptr() for t in tensors.values()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        case.run(tensors)
    new = {t.data_ptr(): t.numel() for t in held if t.data_ptr() not in known}
    rows = 8 * 64
    assert sum(new.values()) <= rows * (8 + 8 + 2) + 1


def test_value_adapter_is_a_parallel_site():
    case = BY_NAME["value"]
    t = case.inputs(torch.float64)
    v, e = t.pop("h"), t.pop("x")
    out = functional.value_adapter(e, v, **t)
    hidden = torch.nn.functional.gelu(e @ t["down_weight"].T + t["down_bias"], approximate="tanh")
    torch.testing.assert_close(out, v + hidden @ t["up_weight"].T + t["up_bias"])
