"""What is particular to the compiled `expert_mixture`; test_operations.py holds it to its reference."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from petx import functional, ops
from tests.cases.expert_mixture import CASES, mixture
from tests.checks import outputs_and_grads

BY_NAME = {case.name: case for case in CASES}
# Narrow enough for weights as they lie, wide enough for the gate's columns beside them.
BATCHES = [(2, 3), (3, 50)]


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("gate", ["uniform", "token", "sample"])
def test_one_expert_is_a_bottleneck(gate, batch):
    """K = 1: alpha x + beta up(gelu(down(x))) whatever the gate, which then learns nothing."""
    case = mixture("one", batch=batch, experts=1, rank=6, gate=gate, activation="gelu", alpha=0.7, beta=0.3)
    t = case.inputs(torch.float64)
    got = outputs_and_grads(case.run, t)

    def bottleneck(t):
        hidden = F.gelu(F.linear(t["x"], t["down_weight"], t["down_bias"]))
        unread = sum(0 * t[name].sum() for name in ("gate_weight", "gate_bias") if name in t)
        return 0.7 * t["x"] + 0.3 * F.linear(hidden, t["up_weight"], t["up_bias"][0]) + unread

    for name, value in outputs_and_grads(bottleneck, t).items():
        torch.testing.assert_close(got[name], value, msg=name)


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("gate", ["token", "sample"])
def test_a_zero_gate_is_uniform(gate, batch):
    gated = mixture("gated", batch=batch, gate=gate, activation="relu")
    t = gated.inputs(torch.float64)
    with torch.no_grad():
        t["gate_weight"].zero_(), t["gate_bias"].fill_(0.7)
    got = outputs_and_grads(gated.run, t)
    shared = {name: value for name, value in t.items() if not name.startswith("gate")}
    for name, value in outputs_and_grads(mixture("equal", batch=batch, activation="relu").run, shared).items():
        torch.testing.assert_close(got[name], value, msg=name)


@pytest.mark.parametrize("gate", ["token", "sample"])
def test_top_all_is_no_top(gate):
    results = []
    for options in ({}, {"top_k": 3}):
        case = mixture("top", gate=gate, activation="gelu", **options)
        results.append(outputs_and_grads(case.run, case.inputs(torch.float32)))
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


@pytest.mark.parametrize("gate", ["token", "sample"])
def test_of_equal_logits_the_first_are_kept(gate):
    """With equal logits, top 2 of 4 is the mean of the first two experts, and the others learn nothing."""
    case = mixture("ties", experts=4, rank=3, gate=gate, top_k=2)
    t = case.inputs(torch.float64)
    with torch.no_grad():
        t["gate_weight"].zero_(), t["gate_bias"].fill_(-0.4)
    got = outputs_and_grads(case.run, t)
    first = {"x": t["x"], "down_weight": t["down_weight"][:6], "down_bias": t["down_bias"][:6]}
    first |= {"up_weight": t["up_weight"][:, :6], "up_bias": t["up_bias"][:2]}
    torch.testing.assert_close(got["out"], functional.expert_mixture(**first, experts=2))
    assert got["down_weight"][:6].any() and not got["down_weight"][6:].any()
    assert got["up_bias"][:2].any() and not got["up_bias"][2:].any()
    assert got["gate_bias"][:2].any() and not got["gate_bias"][2:].any()


def test_ties_between_unequal_logits():
    """Logits 1, 2, 1, 1: top 2 keeps the second and, of the equal ones, the first."""
    case = mixture("tie", experts=4, rank=3, gate="token", top_k=2)
    t = case.inputs(torch.float64)
    with torch.no_grad():
        t["gate_weight"].zero_(), t["gate_bias"].copy_(torch.tensor([1.0, 2.0, 1.0, 1.0]))
    got = outputs_and_grads(case.run, t)["down_weight"].reshape(4, -1).any(1)
    assert got.tolist() == [True, True, False, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gate", ["uniform", "token"])
def test_other_tokens_pass_unchanged(gate, dtype):
    """Out of scope x comes back bit for bit, and so does the gradient."""
    case = mixture("scope", batch=(3, 50), gate=gate, scope=True, activation="gelu")
    t = case.inputs(dtype)
    out = case.run(t)
    dout = torch.randn_like(out)
    dx = torch.autograd.grad(out, t["x"], dout)[0]
    outside = ~case.extras()["scope_mask"]
    assert outside.any() and torch.equal(out[outside], t["x"][outside]) and torch.equal(dx[outside], dout[outside])
    assert not torch.equal(out[~outside], t["x"][~outside])


def test_a_sample_without_a_token_has_its_bias_alone():
    """An empty mean is zero: the gate is softmax(gate_bias), and no token learns of it."""
    case = mixture("pool", gate="sample", pool=True)
    t = case.inputs(torch.float64)
    assert not case.extras()["pool_mask"][1].any()
    out = case.run(t)
    gates = torch.softmax(t["gate_bias"], 0)
    hidden = F.linear(t["x"][1], t["down_weight"], t["down_bias"]).unflatten(-1, (3, -1)) * gates[:, None]
    mixed = F.linear(hidden.flatten(-2), t["up_weight"]) + gates @ t["up_bias"]
    torch.testing.assert_close(out[1], 0.6 * t["x"][1] + 0.4 * mixed)
    bias = torch.autograd.grad(out[1].sum(), t["gate_bias"], retain_graph=True)[0]
    weight = torch.autograd.grad(out[1].sum(), t["gate_weight"])[0]
    assert bias.abs().sum() > 1e-3 and not weight.any()


@pytest.mark.parametrize("gate", ["uniform", "token", "sample"])
def test_saved_tensors_are_narrow(gate):
    """Beside inputs and parameters only [N, K r] and [N, K] values are kept for the backward."""
    case = mixture("memory", batch=(8, 64), d=256, experts=3, rank=4, gate=gate, scope=True)
    tensors = case.inputs(torch.float32)
    held, known = [], {t.data_ptr() for t in tensors.values()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        case.run(tensors)
    new = {t.data_ptr(): t for t in held if t.data_ptr() not in known and t.dtype != torch.bool}
    rows = 8 * 64
    gates = {"uniform": 0, "token": rows * 3, "sample": 8 * 3}[gate]
    assert sum(t.numel() for t in new.values()) == rows * 12 + gates


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("name", ["token-gelu", "sample-pool-scope"])
def test_checkpointing(name, use_reentrant):
    case = BY_NAME[name]
    plain = outputs_and_grads(case.run, case.inputs(torch.float32))
    names = list(case.shapes)

    def repeated(tensors):
        call = lambda *values: case.run(dict(zip(names, values, strict=True)))  # noqa: E731
        return checkpoint(call, *tensors.values(), use_reentrant=use_reentrant)

    tensors = case.inputs(torch.float32)
    repeated(tensors).backward(torch.ones_like(tensors["x"]))
    wanted = torch.autograd.grad(case.run(tensors).sum(), list(tensors.values()))
    assert plain and all(torch.equal(t.grad, w) for t, w in zip(tensors.values(), wanted, strict=True))


@pytest.mark.parametrize("name", ["uniform-gelu", "token-gelu", "sample-pool-scope"])
def test_autocast(name):
    """Float32 tensors run in bf16 under autocast; gradients come back in float32."""
    case = BY_NAME[name]
    tensors = case.inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = outputs_and_grads(case.run, tensors)
    assert got.pop("out").dtype == torch.bfloat16
    plain = outputs_and_grads(case.run, tensors)
    for argument, grad in got.items():
        assert grad.dtype == torch.float32, argument
        assert (grad - plain[argument]).norm() < 0.05 * plain[argument].norm() + 1e-2, argument


def test_parameters_of_several_dtypes():
    case = BY_NAME["token-gelu"]
    t = {name: value.detach() for name, value in case.inputs(torch.float32).items()}
    t["x"], t["up_weight"], t["gate_weight"] = t["x"].bfloat16(), t["up_weight"].double(), t["gate_weight"].half()
    t = {name: value.requires_grad_() for name, value in t.items()}
    for name, grad in outputs_and_grads(case.run, t).items():
        assert grad.dtype == t.get(name, t["x"]).dtype and grad.isfinite().all(), name


def test_masks_of_any_dtype():
    case = BY_NAME["sample-pool-scope"]
    t, masks = case.inputs(torch.float32, requires_grad=False), case.extras()
    wanted = case.call(t, masks)
    for dtype in (torch.int64, torch.float32, torch.uint8):
        assert torch.equal(case.call(t, {name: m.to(dtype) * 3 for name, m in masks.items()}), wanted)


def test_no_width():
    """Columns of x may be none at all."""
    case = mixture("no-width", d=0, gate="sample")
    got = outputs_and_grads(case.run, case.inputs(torch.float32))
    assert got["out"].shape == (3, 7, 0) and not got["gate_bias"].any() and not got["down_bias"].any()


def test_function_transforms():
    case = BY_NAME["token-gelu"]
    t = {name: value.detach() for name, value in case.inputs(torch.float64).items()}
    names = list(t)
    grads = torch.func.grad(lambda t: case.run(t).square().sum())(t)
    leaves = case.inputs(torch.float64)
    plain = torch.autograd.grad(case.run(leaves).square().sum(), list(leaves.values()))
    for name, want in zip(names, plain, strict=True):
        torch.testing.assert_close(grads[name], want)
    batched = torch.func.vmap(lambda x: case.call(t | {"x": x}, {}))(t["x"])
    torch.testing.assert_close(batched, case.run(t))


def test_gradients_in_a_batch_beside_parameters_of_another_dtype():
    """As torch.autograd.functional.jacobian(vectorize=True) asks for them."""
    case = mixture("batch", gate="token")
    t = case.inputs(torch.float32)
    t = {name: v if name == "x" else v.detach().bfloat16().requires_grad_() for name, v in t.items()}
    out, leaves = case.run(t), list(t.values())
    weights = torch.randn(3, *out.shape, generator=torch.Generator().manual_seed(0))
    each = [torch.autograd.grad(out, leaves, w, retain_graph=True) for w in weights]
    batched = torch.autograd.grad(out, leaves, weights, is_grads_batched=True)
    for got, wanted in zip(batched, zip(*each, strict=True), strict=True):
        assert torch.equal(got, torch.stack(wanted))


BAD = {
    "x-integer": (dict(x=torch.ones(3, 7, 24, dtype=torch.int64)), r"x must be floating \[\.\.\., L, d\].*int64"),
    "x-one-dimension": (dict(x=torch.ones(24)), r"x must be floating \[\.\.\., L, d\].*\[24\]"),
    "down-missing": (dict(down_weight=None), "down_weight must be .*got None"),
    "down-width": (dict(down_weight=torch.ones(12, 20)), r"down_weight must be .*\[any, 24\].*got .*\[12, 20\]"),
    "down-rows": (dict(down_weight=torch.ones(13, 24)), "experts must divide .*experts=3, 13 rows"),
    "down-no-rows": (dict(down_weight=torch.ones(0, 24)), "experts must divide .*experts=3, 0 rows"),
    "down-bias": (dict(down_bias=torch.ones(3)), r"down_bias must be .*\[12\].*got .*\[3\]"),
    "up-shape": (dict(up_weight=torch.ones(12, 24)), r"up_weight must be .*\[24, 12\].*got .*\[12, 24\]"),
    "up-bias": (dict(up_bias=torch.ones(24)), r"up_bias must be .*\[3, 24\].*got .*\[24\]"),
    "gate-missing": (dict(gate_weight=None), r"gate_weight must be \[3, 24\], got None"),
    "gate-shape": (dict(gate_weight=torch.ones(24, 3)), r"gate_weight must be .*\[3, 24\].*got .*\[24, 3\]"),
    "gate-bias": (dict(gate_bias=torch.ones(1)), r"gate_bias must be .*\[3\].*got .*\[1\]"),
    "scope-shape": (dict(scope_mask=torch.ones(3, 6)), r"scope_mask must be \[3, 7\], got \[3, 6\]"),
    "pool-shape": (dict(pool_mask=torch.ones(21)), r"pool_mask must be \[3, 7\], got \[21\]"),
    "device": (dict(up_weight=torch.ones(24, 12, device="meta")), "up_weight must be on the device cpu, got meta"),
    "mask-device": (dict(scope_mask=torch.ones(3, 7, device="meta")), "scope_mask must be on the device cpu"),
    "gate": (dict(gate="expert"), "gate must be one of 'uniform', 'token', 'sample', got 'expert'"),
    "activation": (dict(activation="tanh"), "activation must be one of None, 'relu'.*got 'tanh'"),
    "experts": (dict(experts=0), "experts must be a positive integer, got 0"),
    "experts-float": (dict(experts=3.0), r"experts must be a positive integer, got 3\.0"),
    "top-zero": (dict(top_k=0), "top_k must be from 1 to experts = 3, got 0"),
    "top-many": (dict(top_k=4), "top_k must be from 1 to experts = 3, got 4"),
    "alpha": (dict(alpha=float("nan")), "alpha must be finite, got nan"),
    "beta": (dict(beta=float("inf")), "beta must be finite, got inf"),
    "unread-gate": (dict(gate="uniform"), "gate_weight is not used with gate='uniform'"),
    "unread-pool": (dict(gate="token", pool_mask=torch.ones(3, 7)), "pool_mask is not used with gate='token'"),
}


@pytest.mark.parametrize("changes, message", BAD.values(), ids=BAD)
@pytest.mark.parametrize("path", ["kernel", "reference"])
def test_bad_input_names_the_argument(changes, message, path, monkeypatch):
    if path == "reference":
        monkeypatch.setattr("petx.ops._fused", set())
    case = BY_NAME["sample"]
    arguments = case.inputs(torch.float32, requires_grad=False) | case.options | changes
    with pytest.raises(ValueError, match=f"^expert_mixture: {message}"):
        functional.expert_mixture(**arguments)


@pytest.mark.parametrize("gate", ["uniform", "token"])
def test_a_backward_takes_the_path_of_its_forward(gate, monkeypatch):
    """What a GPU's paths keep for the backward differs: another one would make wrong gradients of it."""
    if not ops.takes("expert_mixture", torch.ones(1)):
        pytest.skip("the reference has no paths")
    case = mixture("path", gate=gate)
    tensors = case.inputs(torch.float32)
    for before, after, words in (("hybrid", "fused", "'hybrid', got 'fused'"), (None, "hybrid", "unset, got 'hybrid'")):
        _set(monkeypatch, before)
        out = case.run(tensors)
        _set(monkeypatch, after)
        with pytest.raises(RuntimeError, match=f"PETX_EXPERT_MIXTURE must be as it was in the forward, {words}"):
            out.sum().backward(retain_graph=True)
        _set(monkeypatch, before)
        out.sum().backward()


def _set(monkeypatch, value):
    monkeypatch.delenv("PETX_EXPERT_MIXTURE", raising=False)
    if value:
        monkeypatch.setenv("PETX_EXPERT_MIXTURE", value)
