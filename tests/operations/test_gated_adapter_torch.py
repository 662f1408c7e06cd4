"""`gated_adapter` inside torch: compile, autocast, checkpointing, function transforms, mixed dtypes, clear errors."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from petx import functional, nn
from tests.cases.gated_adapter import CASES

BY_NAME = {case.name: case for case in CASES}


def layer(**options):
    torch.manual_seed(0)
    return nn.GatedAdapter(16, 8, 4, **{"granularity": "large", "residual": True, "norm": "layer"} | options)


def inputs(dtype=torch.float32, requires_grad=True):
    torch.manual_seed(1)
    return [torch.randn(3, 5, 16, dtype=dtype, requires_grad=requires_grad) for _ in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["large", "middleX", "middleY", "small"])
def test_compiles_to_one_graph(granularity):
    adapter = layer(granularity=granularity, dropout=0.1)
    compiled = torch.compile(adapter, fullgraph=True, backend="aot_eager")
    results = []
    for call in (adapter, compiled):
        h, x = inputs()
        torch.manual_seed(5)
        out = call(h, x)
        results.append((out, *torch.autograd.grad(out.square().sum(), [h, x, *adapter.parameters()])))
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager)


@pytest.mark.slow
def test_inductor_and_dynamic_shapes():
    adapter = layer()
    compiled = torch.compile(adapter, fullgraph=True, dynamic=True)
    for batch, length in ((3, 5), (2, 7), (4, 6)):
        h, x = torch.randn(2, batch, length, 16).unbind()
        torch.testing.assert_close(compiled(h, x), adapter(h, x))


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("granularity", ["large", "small"])
def test_checkpointing_repeats_the_same_dropout(use_reentrant, granularity):
    adapter = layer(granularity=granularity, dropout=0.3)
    results = []
    for call in (adapter, lambda h, x: checkpoint(adapter, h, x, use_reentrant=use_reentrant)):
        h, x = inputs()
        adapter.zero_grad()
        torch.manual_seed(5)
        call(h, x).square().sum().backward()
        results.append([h.grad, x.grad, *(p.grad for p in adapter.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("granularity", ["large", "middleX", "small"])
def test_autocast(granularity):
    """GEMMs run in bf16 under autocast, the residual stream stays in float32, and so do gradients of float32 leaves."""
    adapter = layer(granularity=granularity)
    h, x = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = adapter(h, x)
        adapter.residual = False
        assert adapter(h, x).dtype == torch.bfloat16
        adapter.residual = True
    assert out.dtype == torch.float32
    weights = torch.randn_like(h)
    grads = torch.autograd.grad((out * weights).sum(), [h, x, *adapter.parameters()])
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)
    exact = torch.autograd.grad((adapter(h, x) * weights).sum(), h)[0]
    assert (grads[0] - exact).norm() < 0.03 * exact.norm()


def test_autocast_of_inputs_of_two_dtypes():
    """The sub-layer's output is bf16 under autocast, the residual branch float32."""
    adapter = layer()
    h, x = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = adapter(h.bfloat16(), x)
    assert torch.equal(out, adapter(h.bfloat16(), x))  # what autocast chose, given so
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad.dtype == torch.float32 and grad.isfinite().all()


def test_seed_of_any_shape_of_one_element():
    h, x = inputs()
    adapter = layer(dropout=0.5)
    names = dict(down_weight=adapter.down.weight, down_bias=None, up_weight=adapter.up.weight, up_bias=None)

    def call(seed):
        return functional.gated_adapter(h, x, **names, dropout=0.5, seed=seed)

    assert torch.equal(call(torch.tensor(7)), call(torch.tensor([7])))
    with pytest.raises(ValueError, match="seed must be an int64 tensor of one element"):
        call(torch.tensor([7, 8]))


def test_float32_adapter_beside_a_bf16_base():
    adapter = layer()
    h, x = inputs(torch.bfloat16)
    out = adapter(h, x)
    assert out.dtype == torch.bfloat16
    grads = torch.autograd.grad(out.sum(), [h, adapter.down.weight])
    assert grads[0].dtype == torch.bfloat16 and grads[1].dtype == torch.float32


def test_function_transforms():
    adapter = layer().double().eval()
    h, x = (t.detach() for t in inputs(torch.float64))
    parameters = {n: p.detach() for n, p in adapter.named_parameters()}

    def loss(p):
        return torch.func.functional_call(adapter, p, (h, x)).square().sum()

    grads = torch.func.grad(loss)(parameters)
    plain = torch.autograd.grad(adapter(h, x).square().sum(), list(adapter.parameters()))
    for name, want in zip(parameters, plain, strict=True):
        torch.testing.assert_close(grads[name], want)
    batched = torch.func.vmap(lambda a, b: adapter(a[None], b[None])[0])(h, x)
    torch.testing.assert_close(batched, torch.stack([adapter(a[None], b[None])[0] for a, b in zip(h, x, strict=True)]))


def bad_call(**changes):
    case = BY_NAME["large-bart"]
    tensors = case.inputs(torch.float32, requires_grad=False)
    return functional.gated_adapter(**tensors | {k: v for k, v in changes.items()}, **case.options)


BAD = {
    "h-not-floating": (dict(h=torch.ones(3, 5, 24, dtype=torch.int64)), "floating|dtype"),
    "h-one-dimension": (dict(h=torch.ones(24)), r"h must be floating \[..., length, d\]"),
    "x-missing": (dict(x=None), "x is required"),
    "x-length": (dict(x=torch.ones(3, 4, 24)), r"x must be .*got \[3, 4, 24\]"),
    "x-width": (dict(x=torch.ones(3, 5, 20)), "x must have h's width 24 here, got 20"),
    "x-dtype": (dict(x=torch.ones(3, 5, 24).double()), "x must have h's dtype torch.float32, got torch.float64"),
    "x-dtype-beside-16-bits": (
        dict(h=torch.ones(3, 5, 24).bfloat16(), x=torch.ones(3, 5, 24).half()),
        "x must have h's dtype torch.bfloat16 or, beside 16 bits, float32, got torch.float16",
    ),
    "down-width": (dict(down_weight=torch.ones(8, 20)), r"down_weight must be \[8, 24\], got \[8, 20\]"),
    "down-dims": (dict(down_weight=torch.ones(8)), r"down_weight must be \[r, width\].*got \[8\]"),
    "down-rows": (
        dict(down_weight=torch.ones(0, 24)),
        r"down_weight must be \[r, width\] with r >= 1, got .*\[0, 24\]",
    ),
    "gate-rows": (
        dict(gate_down_weight=torch.ones(0, 24), gate_down_bias=torch.ones(0), gate_weight=torch.ones(24, 0)),
        r"gate_down_weight must be \[r_g, d_x\] with r_g >= 1, got .*\[0, 24\]",
    ),
    "up-shape": (dict(up_weight=torch.ones(24, 4)), r"up_weight must be \[24, 8\], got \[24, 4\]"),
    "bias-shape": (dict(down_bias=torch.ones(7)), r"down_bias must be \[8\], got \[7\]"),
    "gate-missing": (dict(gate_weight=None), "gate_weight must be .*got None"),
    "gate-shape": (dict(gate_weight=torch.ones(24, 5)), r"gate_weight must be \[24, 6\], got \[24, 5\]"),
    "norm-missing": (dict(norm_weight=None), "norm_weight must be .*got None"),
    "mask-shape": (dict(padding_mask=torch.ones(3, 4)), r"padding_mask must be \[3, 5\], got \[3, 4\]"),
    "device": (dict(down_weight=torch.ones(8, 24, device="meta")), "down_weight.*device"),
}


@pytest.mark.parametrize("changes, message", BAD.values(), ids=BAD)
@pytest.mark.parametrize("path", ["kernel", "reference"])
def test_bad_input_names_the_argument(changes, message, path, monkeypatch):
    if path == "reference":
        monkeypatch.setattr("petx.ops._fused", set())
    with pytest.raises((ValueError, RuntimeError), match=message):
        bad_call(**changes)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(granularity="huge"), "granularity must be one of 'none', 'large'.*got 'huge'"),
        (dict(activation="relu"), "activation must be one of"),
        (dict(norm="batch"), "norm must be one of"),
        (dict(heads=3), "heads must divide"),
        (dict(heads=0), "heads must divide"),
        (dict(dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (dict(scale=float("nan")), "scale must be finite, got nan"),
    ],
)
def test_bad_options(options, message):
    case = BY_NAME["none"]
    with pytest.raises((ValueError, RuntimeError), match=message):
        functional.gated_adapter(x=None, **case.inputs(torch.float32), **case.options | options)
