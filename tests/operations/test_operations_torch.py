"""Every operation inside torch: operator checks, compile, mixed dtypes, second derivatives, the reference path."""

import pytest
import torch

from petx.functional._autograd import Differentiable
from tests.cases import few
from tests.checks import Recorder, outputs, outputs_and_grads, weights_of

# All of torch's. AOTAutograd's trace is nine tenths of the time, and of types it knows what the fake results say.
OPCHECKS, TRACE = ("test_schema", "test_autograd_registration", "test_faketensor"), ("test_aot_dispatch_dynamic",)
by_few = pytest.mark.parametrize("case", few(), ids=str)


@pytest.mark.slow
@by_few
@pytest.mark.parametrize(
    ("dtype", "checks"),
    [
        pytest.param(torch.float32, OPCHECKS + TRACE, id="float32"),
        pytest.param(torch.bfloat16, OPCHECKS, id="bfloat16"),
        pytest.param(torch.bfloat16, TRACE, id="bfloat16-traced", marks=pytest.mark.nightly),
    ],
)
def test_opcheck(case, dtype, checks):
    tensors = case.inputs(dtype)
    with Recorder() as recorder:
        results = outputs(case.run(tensors))
        for wanted in ([next(iter(tensors.values()))], list(tensors.values())):
            torch.autograd.grad(results, wanted, weights_of(results), retain_graph=True, allow_unused=True)
    assert len(recorder.calls) >= 3
    for operator, args in recorder.calls:
        torch.library.opcheck(operator, _detached(args), test_utils=checks)


def _detached(value):
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return type(value)(map(_detached, value)) if isinstance(value, list | tuple) else value


@pytest.mark.slow
@by_few
def test_compiles_to_one_graph(case):
    torch._dynamo.reset()
    extras = case.extras()
    compiled = torch.compile(lambda tensors: case.call(tensors, extras), fullgraph=True, backend="aot_eager")
    results = [outputs_and_grads(call, case.inputs(torch.float32)) for call in (case.run, compiled)]
    for name, eager in results[0].items():
        torch.testing.assert_close(results[1][name], eager)


@pytest.mark.slow
@by_few
@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.nightly)])
def test_compiles_to_one_graph_without_gradients(case, backend):
    """What AOTAutograd makes of the operator, test_opcheck says too."""
    torch._dynamo.reset()
    extras, tensors = case.extras(), case.inputs(torch.float32, requires_grad=False)
    compiled = torch.compile(lambda tensors: case.call(tensors, extras), fullgraph=True, backend=backend)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            for got, wanted in zip(outputs(compiled(tensors)), outputs(case.run(tensors)), strict=True):
                torch.testing.assert_close(got, wanted)


@by_few
def test_float32_parameters_beside_bf16_activations(case):
    tensors = {n: t.detach() for n, t in case.inputs(torch.float32).items()}
    mixed = {n: (t.bfloat16() if n in case.ACTIVATIONS else t).requires_grad_() for n, t in tensors.items()}
    for name, value in outputs_and_grads(case.run, mixed).items():
        if value is not None and case.ACTIVATIONS:
            wanted = torch.bfloat16 if name.startswith("out") or name in case.ACTIVATIONS else torch.float32
            assert value.dtype == wanted and value.isfinite().all(), name


def _strided(tensor):
    """The same values, not contiguous."""
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


@by_few
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_without_gradients_the_same(case, dtype, monkeypatch):
    """The short way of a call without gradients, and the long one for what the operator refuses as it is."""
    tensors = {n: t.detach() for n, t in case.inputs(dtype).items()}
    extras = {n: t for n, t in case.extras().items() if n != "seed" or case.options.get("dropout")}
    wanted = outputs(case.call({n: t.clone().requires_grad_() for n, t in tensors.items()}, extras))
    mixed = {n: t if n in case.ACTIVATIONS else t.double() for n, t in tensors.items()}
    givens = [tensors, {n: _strided(t) for n, t in tensors.items()}, *([mixed] if case.ACTIVATIONS else [])]
    long, real = [], Differentiable.call.__func__
    monkeypatch.setattr(
        Differentiable, "call", classmethod(lambda *args, **more: long.append(args) or real(*args, **more))
    )
    with torch.no_grad():
        for given in givens:
            for value, expected in zip(outputs(case.call(given, extras)), wanted, strict=True):
                torch.testing.assert_close(value, expected)
            if given is tensors:
                assert bool(long) == (bool(extras) or case.operation == "cp_reconstruct")
    assert long or not case.ACTIVATIONS


@by_few
def test_without_gradients_a_tensor_on_meta_is_refused(case):
    tensors = {n: t.detach() for n, t in case.inputs(torch.float32).items()}
    with torch.no_grad():
        for name in list(tensors)[1:]:
            with pytest.raises((ValueError, RuntimeError), match="meta"):
                case.run(tensors | {name: tensors[name].to("meta")})


@by_few
def test_second_derivative_is_refused(case):
    tensors = case.inputs(torch.float32)
    results = outputs(case.run(tensors))
    grads = torch.autograd.grad(results, list(tensors.values()), weights_of(results), True, True, allow_unused=True)
    with pytest.raises(RuntimeError):
        sum(grad.sum() for grad in grads if grad is not None).backward()


@by_few
def test_reference_path_gives_the_same(case, monkeypatch):
    tensors = case.inputs(torch.float64)
    fused = outputs_and_grads(case.run, tensors)
    monkeypatch.setattr("petx.ops._fused", set())
    for name, value in outputs_and_grads(case.run, tensors).items():
        if value is None:
            assert fused[name] is None or not fused[name].any()
        else:
            torch.testing.assert_close(fused[name], value)


@by_few
def test_forward_mode_derivatives_are_not_dropped(case):
    """Without gradients, where a call would go straight to the operator: the tangent is the reference's."""
    from torch.autograd import forward_ad

    tensors = {n: t.detach() for n, t in case.inputs(torch.float64).items()}
    along = {n: torch.ones_like(t) for n, t in tensors.items()}
    tangents = []
    with torch.no_grad(), forward_ad.dual_level():
        for call in (case.run, case.expected):
            duals = {n: forward_ad.make_dual(t.clone(), along[n]) for n, t in tensors.items()}
            tangents.append([forward_ad.unpack_dual(result).tangent for result in outputs(call(duals))])
    for mine, wanted in zip(*tangents, strict=True):
        assert mine is not None
        torch.testing.assert_close(mine, wanted)


OF_LISTS = [case for case in few() if case.operation in ("mode_update", "cp_reconstruct")]  # take lists of tensors


@pytest.mark.parametrize("case", [*OF_LISTS, *{case.operation: case for case in few()}.values()], ids=str)
def test_gradients_in_a_batch(case):
    """As torch.autograd.functional.jacobian(vectorize=True) and torch.func.vmap over autograd.grad ask for them."""
    tensors = case.inputs(torch.float32)
    parameters = [name for name in tensors if name not in case.ACTIVATIONS and not name.startswith("weight")]
    tensors[parameters[-1]] = tensors[parameters[-1]].detach().bfloat16().requires_grad_()
    out = outputs(case.run(tensors))[-1]
    leaves = {name: leaf for name, leaf in tensors.items() if _grads(out, [leaf], torch.ones_like(out))[0] is not None}
    weights = torch.randn(2, *out.shape, generator=torch.Generator().manual_seed(0))
    each = list(zip(*(_grads(out, leaves.values(), weight) for weight in weights), strict=True))
    for batched in (
        _grads(out, leaves.values(), weights, is_grads_batched=True),
        torch.func.vmap(lambda weight: _grads(out, leaves.values(), weight))(weights),
    ):
        for name, got, wanted in zip(leaves, batched, each, strict=True):
            assert got.dtype == leaves[name].dtype
            close = dict.fromkeys(("rtol", "atol"), 2e-2 if got.dtype == torch.bfloat16 else 1e-3)
            torch.testing.assert_close(got, torch.stack(wanted), **close, msg=name)


def _grads(out, leaves, weight, **more):
    return torch.autograd.grad(out, list(leaves), weight, retain_graph=True, allow_unused=True, **more)
