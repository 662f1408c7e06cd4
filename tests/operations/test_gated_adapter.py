"""What is particular to the compiled `gated_adapter`; tests/operations/test_operations.py holds it to its reference."""

import pytest
import torch

from petx import functional
from petx.functional import _gated_adapter
from tests.cases.gated_adapter import CASES, site
from tests.checks import outputs_and_grads

BY_NAME = {case.name: case for case in CASES}


def test_inputs_may_alias():
    case = BY_NAME["large-bart"]
    tensors = case.inputs(torch.float64)
    tensors["x"] = tensors["h"]
    out = case.run(tensors)
    expected = case.expected(tensors)
    torch.testing.assert_close(out, expected)
    grads = [torch.autograd.grad(o.sum(), tensors["h"])[0] for o in (out, expected)]
    torch.testing.assert_close(*grads)


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


def test_sums_over_tokens_are_float32(device):
    """256 of the first token and 1 of two others, in bfloat16, which has no 257. On a CPU the second is of another
    block of the first's split, the third of another split."""
    h, dout = torch.zeros(2, 1, 1100, 8, device=device).bfloat16()
    h[0, [0, 500, -1]] = 8  # where gelu changes nothing
    dout[0, 0], dout[0, [500, -1]] = 32, 0.125
    down, up = torch.eye(8, device=device), torch.zeros(8, 8, device=device, requires_grad=True)
    functional.gated_adapter(h, None, down, None, up, None).backward(dout)
    assert (up.grad == 258).all()


@pytest.mark.parametrize("granularity", ["none", "large"])
def test_gelu_is_of_z_as_it_is_stored(granularity, device):
    """z is -4 - 1/256, in bfloat16 -4: there gelu is another by a fiftieth, and the backward has z from memory."""
    large = granularity == "large"  # then of the gate's alone: S is 1
    h = torch.tensor([[[-4.0, float(large)]]], device=device).bfloat16()
    down, bias = torch.tensor([[1.0, 0.0]], device=device), torch.tensor([-1 / 256], device=device)
    up = torch.tensor([[0.0], [1.0]], device=device)
    wanted = torch.nn.functional.gelu(torch.full((), -4.0, device=device), approximate="tanh")
    if large:
        gate = dict(gate_weight=20_000 * up, gate_down_weight=down, gate_down_bias=bias)
        out = functional.gated_adapter(h, h, down, None, 0 * up, None, granularity=granularity, **gate)
        wanted = torch.sigmoid(20_000 * wanted)
    else:
        out = functional.gated_adapter(h, None, down, bias, up, None)
    torch.testing.assert_close(out[0, 0, 1].float(), wanted, rtol=2**-7, atol=0)


@pytest.mark.parametrize("norm", [None, "layer"])
@pytest.mark.parametrize("granularity", ["none", "middleX"])
def test_a_float32_stream_is_not_rounded(granularity, norm, device):
    """Where Y is zero, results and gradients are those of a float32 norm, or of nothing, beside an h in bfloat16."""
    zero, draw = torch.zeros(1, 5, 16, device=device), torch.Generator().manual_seed(0)
    x, weight, bias, dout = (torch.randn(n, 16, generator=draw).to(device) for n in (5, 1, 1, 5))
    leaves = [x[None].requires_grad_(), weight[0].requires_grad_(), bias[0].requires_grad_()]
    options = dict(granularity=granularity, gate_weight=None if granularity == "none" else zero[:, 0], residual=True)
    if norm:
        options |= dict(norm=norm, norm_weight=leaves[1], norm_bias=leaves[2])
    out = functional.gated_adapter(zero.bfloat16(), leaves[0], zero[0, :1], None, zero[0, :1].T, None, **options)
    wanted = torch.nn.functional.layer_norm(leaves[0], (16,), *leaves[1:]) if norm else leaves[0] * 1
    for one, other in zip(
        [out, *torch.autograd.grad(out, leaves[: 3 if norm else 1], dout[None])],
        [wanted, *torch.autograd.grad(wanted, leaves[: 3 if norm else 1], dout[None])],
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6 if norm else 0)


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


def _held(dtype=torch.float32, **options):
    """Values that a site keeps for its backward, beside inputs, parameters and the seed; and its rows."""
    case = site("memory", batch=(64, 64), d=256, r=8, r_g=8, granularity="large", **options)
    tensors = case.inputs(dtype)
    held, known = [], {t.data_ptr() for t in tensors.values()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        case.run(tensors)
    new = {t.data_ptr(): t.numel() for t in held if t.data_ptr() not in known and t.dtype != torch.int64}
    return sum(new.values()), 64 * 64


def _limits(monkeypatch, values):
    for name in ("KEPT_VALUES", "KEPT_VALUES_BARE"):
        monkeypatch.setattr(_gated_adapter, name, values)


def test_saved_tensors_are_rank_wide(monkeypatch):
    """Only inputs, parameters, the seed, statistics and [N, r] tensors are kept for the backward."""
    monkeypatch.setattr(_gated_adapter, "KEPT_VALUES", 64 * 64 * 256 - 1)
    held, rows = _held(dropout=0.1, residual=True, norm="layer")
    assert held == rows * (8 + 8 + 2)


def test_last_products_are_kept_up_to_a_size(monkeypatch):
    (bare, rows), (tail, _) = _held(), _held(dropout=0.1)
    assert bare == tail == rows * (8 + 8 + 2 * 256)
    assert _held(torch.bfloat16)[0] == rows * (8 + 8)
    _limits(monkeypatch, 0)
    assert _held()[0] == rows * (8 + 8)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kept_and_remade_products_agree(case, monkeypatch):
    tensors = case.inputs(torch.float64)
    torch.manual_seed(5)
    weights = torch.randn_like(case.run(tensors))
    results = []
    for limit in (0, 1 << 40):
        _limits(monkeypatch, limit)
        torch.manual_seed(5)
        leaves = [t for t in tensors.values() if t.requires_grad]
        out = case.run(tensors)
        results.append((out, *torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("granularity", ["none", "large"])
def test_no_width(granularity):
    """Channels of h may be none at all."""
    case = site("no-width", d=0, granularity=granularity)
    got = outputs_and_grads(case.run, case.inputs(torch.float32))
    assert got["out"].shape == (3, 5, 0) and not got["down_bias"].any()


def test_value_adapter_is_a_parallel_site():
    case = BY_NAME["value"]
    t = case.inputs(torch.float64)
    v, e = t.pop("h"), t.pop("x")
    out = functional.value_adapter(e, v, **t)
    hidden = torch.nn.functional.gelu(e @ t["down_weight"].T + t["down_bias"], approximate="tanh")
    torch.testing.assert_close(out, v + hidden @ t["up_weight"].T + t["up_bias"])


def test_value_adapters_are_one_value_adapter_a_layer():
    torch.manual_seed(0)
    layers, d_e, d, r = 3, 12, 8, 5
    e, v = torch.randn(2, 7, d_e, dtype=torch.float64), torch.randn(2, 7, layers, d, dtype=torch.float64)
    shapes = [(layers, r, d_e), (layers, r), (layers, d, r), (layers, d)]
    weights = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    together = functional.value_adapters(e, v, *weights, scale=0.5)
    each = [functional.value_adapter(e, v[:, :, i], *(w[i] for w in weights), scale=0.5) for i in range(layers)]
    torch.testing.assert_close(together, torch.stack(each, dim=2))
    grads = [torch.autograd.grad(y.square().sum(), weights) for y in (together, torch.stack(each))]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
    plain = functional.value_adapters(e, v, weights[0], None, weights[2], None)
    assert plain.shape == v.shape


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(v=torch.ones(2, 7, 2, 8)), r"v must be floating \[2, 7, 3, any\], got .* \[2, 7, 2, 8\]"),
        (dict(down_weight=torch.ones(15, 12)), r"down_weight must be \[L, r, d_e\], got \[15, 12\]"),
        (dict(up_weight=torch.ones(3, 5, 8)), r"up_weight must be floating \[3, 8, 5\]"),
        (dict(down_bias=torch.ones(5)), r"down_bias must be floating \[3, 5\]"),
    ],
)
def test_value_adapters_name_what_does_not_fit(change, message):
    given = dict(e=torch.ones(2, 7, 12), v=torch.ones(2, 7, 3, 8), down_weight=torch.ones(3, 5, 12), down_bias=None)
    given |= dict(up_weight=torch.ones(3, 8, 5), up_bias=None) | change
    with pytest.raises(ValueError, match=f"value_adapters: {message}"):
        functional.value_adapters(**given)


def test_meta_tensors_under_autocast_keep_their_dtype():
    """Of the device meta torch refuses to say whether autocast is on; its own layers do not cast there."""
    h = torch.empty(2, 3, 8, device="meta")
    weights = [torch.empty(shape, device="meta") for shape in ((4, 8), (4,), (8, 4), (8,))]
    with torch.autocast("cpu", torch.bfloat16):
        assert functional.gated_adapter(h, h, *weights).dtype == torch.float32
        with pytest.raises(ValueError, match="x must have h's dtype torch.float32, got torch.bfloat16"):
            functional.gated_adapter(h, h.bfloat16(), *weights, residual=True)
