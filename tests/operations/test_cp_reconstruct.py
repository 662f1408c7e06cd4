"""What is particular to `cp_reconstruct`; tests/operations/test_operations.py holds it to its reference."""

import pytest
import torch

from petx import functional
from petx.functional import _cp_reconstruct
from tests.cases.cp_reconstruct import CASES, LARGE, ReconstructCase, reconstruct
from tests.checks import Recorder, outputs_and_grads, wrong

BY_NAME = {case.name: case for case in CASES}
GATED = [dict(gate="none"), dict(gate="soft"), dict(gate="hard"), dict(gate="sigmoid", temperature=0.05)]
both_paths = pytest.mark.parametrize("path", ["kernel", "reference"])


@pytest.fixture
def on_path(monkeypatch, path):
    if path == "reference":
        monkeypatch.setattr("petx.ops._fused", set())


def arguments(name, dtype=torch.float32, **options):
    return ReconstructCase.arguments(BY_NAME[name].inputs(dtype, **options))


@pytest.mark.slow
@pytest.mark.parametrize("case", LARGE, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_weights(case, dtype):
    tensors, before = case.inputs(dtype), torch.get_num_threads()
    results = outputs_and_grads(case.run, tensors)
    assert not wrong(results, case, tensors)
    try:
        torch.set_num_threads(3 if before != 3 else 1)
        again = outputs_and_grads(case.run, tensors)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(again[name], value) for name, value in results.items())


@both_paths
@pytest.mark.parametrize("options", GATED, ids=lambda options: options["gate"])
@pytest.mark.parametrize("core", ["full", "diagonal"])
def test_unmerging_gives_the_weights_back_up_to_two_roundings(on_path, options, core):
    """Merge and unmerge add the same update with opposite signs, so each leaves half a unit in the last place of its
    own result: 2^-24 (|W'| + |W''|) in float32. Where |W'| <= 2 |W| that is at most three units of 2^-24 |W|."""
    case = reconstruct("merge", modules=4, d_out=160, d_in=200, rank=24, core=core, threshold=4, scale=0.7, **options)
    t = ReconstructCase.arguments(case.inputs(torch.float32, requires_grad=False))
    merged = functional.cp_reconstruct(**t, **case.options)
    back = functional.cp_reconstruct(**t | {"weights": merged}, **case.options | {"scale": -0.7})
    for before, during, after in zip(t["weights"], merged, back, strict=True):
        assert not torch.equal(before, during)
        bound = (during.double().abs() + after.double().abs()) * 2.0**-24
        assert ((after.double() - before.double()).abs() <= bound).all()


@pytest.mark.parametrize("options", GATED, ids=lambda options: options["gate"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_update_turns_its_sign_with_the_scale(options, dtype):
    case = reconstruct("sign", d_out=40, d_in=50, threshold=2, **options)
    t = ReconstructCase.arguments(case.inputs(dtype, requires_grad=False))
    t["weights"] = [torch.zeros_like(weight) for weight in t["weights"]]
    plus, minus = (functional.cp_reconstruct(**t, **options, scale=scale) for scale in (1.3, -1.3))
    assert all(torch.equal(a, -b) for a, b in zip(plus, minus, strict=True))


@both_paths
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_sum_is_rounded_once(on_path, dtype):
    """The result is the 16-bit value nearest to the sum in float32, whatever the update's size."""
    case = reconstruct("once", modules=3, d_out=64, d_in=80, rank=16, threshold=3, gate="soft")
    t = ReconstructCase.arguments(case.inputs(dtype, requires_grad=False))
    wide = {k: [w.float() for w in x] if k == "weights" else x.float() for k, x in t.items()}
    exact = functional.cp_reconstruct(**wide, gate="soft")
    for got, want in zip(functional.cp_reconstruct(**t, gate="soft"), exact, strict=True):
        assert (got == want.to(dtype)).float().mean() > 0.999  # but for a float32 sum that lies just at a border


@both_paths
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gate_at_its_threshold(on_path, dtype):
    """An entry of exactly Γ is kept by no gate but the sigmoid, which halves it; zero stays zero, under a negative Γ
    too. With rank 1 and unit factors the update is u."""
    values = torch.tensor([[0.5, -0.5, 0.75, -0.75, 0.25, 0.0]], dtype=dtype)
    one, weight = torch.ones(1, 1, dtype=dtype), torch.zeros_like(values)

    def call(gate, limit, temperature=1.0):
        u, t = values.clone().requires_grad_(), torch.tensor([limit], dtype=dtype, requires_grad=True)
        (out,) = functional.cp_reconstruct(
            [weight], u, one, one.reshape(1, 1, 1), t, gate=gate, temperature=temperature
        )
        return out[0].tolist(), *(g.flatten().tolist() for g in torch.autograd.grad(out.sum(), [u, t]))

    assert call("soft", 0.5) == ([0, 0, 0.25, -0.25, 0, 0], [0, 0, 1, 1, 0, 0], [0])
    assert call("hard", 0.5) == ([0, 0, 0.75, -0.75, 0, 0], [1] * 6, [0])
    assert call("soft", -0.25) == ([0.75, -0.75, 1, -1, 0.5, 0], [1, 1, 1, 1, 1, 0], [-1])
    assert call("hard", -0.25) == ([0.5, -0.5, 0.75, -0.75, 0.25, 0], [1] * 6, [-1])
    out, du, dt = call("sigmoid", 0.5, temperature=0.25)
    assert out[:2] == [0.25, -0.25] and out[5] == 0
    assert du[:2] == [0.5 + 0.5 * 0.25 / 0.25] * 2  # sigma + |w| sigma (1 - sigma) / temperature
    assert len(dt) == 1


@both_paths
@pytest.mark.parametrize("options", GATED, ids=lambda options: options["gate"])
def test_what_is_not_a_number_is_not_hidden(on_path, options):
    t = arguments("none", requires_grad=False)
    t["threshold"] = None if options["gate"] == "none" else torch.tensor([0.1])
    t["u"][0, 3] = float("nan")
    for out in functional.cp_reconstruct(**t, **options):
        assert out[:, 3].isnan().all() and out.isnan().sum() == out.shape[0]


def test_a_models_48_modules_take_one_call():
    case = reconstruct("model", modules=48, d_out=40, d_in=72, rank=8, threshold=48, gate="sigmoid", temperature=0.1)
    tensors = case.inputs(torch.float32)
    with Recorder() as recorder:
        together = outputs_and_grads(case.run, tensors)
    assert [call.name() for call, _ in recorder.calls] == ["petx::cp_reconstruct_fwd", "petx::cp_reconstruct_bwd"]
    t = ReconstructCase.arguments(tensors)
    for k in (0, 17, 47):
        one = t | {"weights": [t["weights"][k]], "cores": t["cores"][k : k + 1], "threshold": t["threshold"][k : k + 1]}
        (alone,) = functional.cp_reconstruct(**one, **case.options)
        assert torch.equal(alone, together[f"out {k}"])


@both_paths
@pytest.mark.parametrize("threshold", [1, 3])
def test_results_that_nobody_uses(on_path, threshold):
    """A result without a gradient costs nothing and changes no other gradient; what leads only to it has zeros."""
    case = reconstruct("unused", modules=3, gate="sigmoid", threshold=threshold)
    t = case.inputs(torch.float64)
    outs = case.run(t)
    given = torch.randn(outs[1].shape, dtype=torch.float64)
    leaves = [t[name] for name in ("u", "v", "cores", "threshold", "weight 1")]
    grads = torch.autograd.grad(outs[1], leaves, given)
    zeros = [given if k == 1 else torch.zeros_like(given) for k in range(3)]
    for grad, want in zip(grads, torch.autograd.grad(case.expected(t), leaves, zeros), strict=True):
        torch.testing.assert_close(grad, want)
    assert torch.autograd.grad(case.run(t)[1], t["weight 0"], given, allow_unused=True)[0] is None


def test_nothing_of_a_weights_size_is_kept():
    """Beside the factors nothing, or two bits for each entry."""
    held = []
    for gate, bytes_ in (("sigmoid", 0), ("soft", 5 * 64 * 25), ("hard", 5 * 64 * 25)):
        case = reconstruct("memory", modules=5, d_out=64, d_in=98, rank=4, gate=gate, threshold=5)
        tensors = case.inputs(torch.float32)
        held.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
            case.run(tensors)
        factors = {tensors[name].data_ptr() for name in ("u", "v", "cores", "threshold")}
        new = [t for t in held if t.numel() and t.data_ptr() not in factors]
        assert sum(t.nbytes for t in new) == bytes_ and all(t.dtype == torch.uint8 for t in new)
    tensors["weight 0"].requires_grad_()
    frozen = {name: t if name == "weight 0" else t.detach() for name, t in tensors.items()}
    with Recorder() as recorder:
        case.run(frozen)
    assert recorder.calls[0][1][-1] is False  # nobody will ask for a factor's gradient


@pytest.mark.parametrize(
    "case", [case for case in [*CASES, *LARGE] if case.options.get("gate") in ("soft", "hard")], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sides_and_remade_updates_agree(case, dtype, monkeypatch):
    tensors, results = case.inputs(dtype), []
    results.append(outputs_and_grads(case.run, tensors))
    monkeypatch.setattr(_cp_reconstruct, "_keeps_sides", lambda *args: False)
    results.append(outputs_and_grads(case.run, tensors))
    for name, value in results[0].items():
        if name == "threshold":  # a sum of many values in another order, in bf16 rounded to it
            torch.testing.assert_close(value, results[1][name], rtol=1e-2 if dtype.itemsize == 2 else 1e-5, atol=1e-4)
        else:
            assert torch.equal(value, results[1][name]), name


def test_sides_of_a_value_at_its_threshold_or_none():
    """The backward from sides has the gradients of `test_gate_at_its_threshold`, whatever the length of a row."""
    for length in range(1, 14):
        values = torch.tensor([0.5, -0.5, 0.75, -0.75, 0.25, 0.0, float("nan")] * 2)[:length]
        u, t = values[None].clone().requires_grad_(), torch.tensor([0.5], requires_grad=True)
        one = torch.ones(1, 1)
        (out,) = functional.cp_reconstruct([torch.zeros(1, length)], u, one, one[None], t, gate="soft")
        du, dt = torch.autograd.grad(out, [u, t], torch.arange(1.0, length + 1)[None])
        places = torch.arange(1.0, length + 1)
        assert torch.equal(du[0], torch.where(values.abs() > 0.5, places, 0.0))
        assert dt.item() == -(places * values.sign() * (values.abs() > 0.5)).nan_to_num().sum().item()


def test_weights_pass_their_gradient_on_without_a_copy():
    t = arguments("soft")
    outs = functional.cp_reconstruct(**t, gate="soft")
    given = [torch.randn_like(out) for out in outs]
    grads = torch.autograd.grad(outs, t["weights"], given)
    assert [grad.data_ptr() for grad in grads] == [grad.data_ptr() for grad in given]


def test_results_share_no_memory():
    """So that each can be saved, freed and changed alone."""
    t = arguments("many", requires_grad=False)
    outs = functional.cp_reconstruct(**t, gate="soft")
    storages = {x.untyped_storage().data_ptr() for x in (*outs, *t["weights"])}
    assert len(storages) == 2 * len(outs)


@both_paths
def test_one_weight_may_stand_for_several(on_path):
    t = arguments("soft-each", torch.float64)
    weight = t["weights"][0]
    t["weights"] = [weight] * 3
    outs = functional.cp_reconstruct(**t, gate="soft")
    apart = functional.cp_reconstruct(**t | {"weights": [weight.detach().clone() for _ in range(3)]}, gate="soft")
    assert all(map(torch.equal, outs, apart))
    (grad,) = torch.autograd.grad(outs, weight, [torch.full_like(weight, k + 1.0) for k in range(3)])
    assert torch.equal(grad, torch.full_like(weight, 6.0))


@both_paths
def test_weights_of_any_strides(on_path):
    t = arguments("soft", requires_grad=False)
    plain = functional.cp_reconstruct(**t, gate="soft")
    wide = torch.stack([t["weights"][0], t["weights"][0] + 1], dim=-1)
    t["weights"] = [wide[..., 0], t["weights"][1].T.contiguous().T]
    assert not any(weight.is_contiguous() for weight in t["weights"])
    outs = functional.cp_reconstruct(**t, gate="soft")
    assert all(map(torch.equal, outs, plain))


def test_gradients_of_any_strides():
    case = BY_NAME["sigmoid"]
    t = case.inputs(torch.float32)
    leaves, outs = [t["u"], t["v"], t["cores"], t["threshold"]], case.run(t)
    ones = torch.autograd.grad(outs, leaves, [torch.ones_like(out) for out in outs], retain_graph=True)
    expanded = torch.autograd.grad(sum(out.sum() for out in outs), leaves)
    assert all(map(torch.equal, ones, expanded))


@both_paths
@pytest.mark.parametrize("shape", [(0, 5), (5, 0)], ids=str)
def test_empty_weights(on_path, shape):
    case = reconstruct("empty", d_out=shape[0], d_in=shape[1], gate="soft", threshold=2)
    results = outputs_and_grads(case.run, case.inputs(torch.float32))
    assert results["out 0"].shape == shape
    assert not results["cores"].any() and results["threshold"].tolist() == [0, 0]


@both_paths
def test_float32_factors_beside_bf16_weights(on_path):
    t = arguments("sigmoid-each")
    t["weights"] = [weight.detach().bfloat16().requires_grad_() for weight in t["weights"]]
    outs = functional.cp_reconstruct(**t, gate="sigmoid")
    assert all(out.dtype == torch.bfloat16 for out in outs)
    leaves = [t["u"], t["v"], t["cores"], t["threshold"], *t["weights"]]
    grads = torch.autograd.grad(outs, leaves, [torch.ones_like(out) for out in outs])
    assert [grad.dtype for grad in grads] == [leaf.dtype for leaf in leaves]
    assert all(grad.isfinite().all() for grad in grads)


@both_paths
def test_autocast_changes_nothing(on_path):
    t = arguments("sigmoid")
    plain = functional.cp_reconstruct(**t, gate="sigmoid")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = functional.cp_reconstruct(**t, gate="sigmoid")
    assert all(map(torch.equal, plain, cast))


def test_function_transforms():
    t = arguments("sigmoid-each", torch.float64, requires_grad=False)

    def loss(u, threshold):
        outs = functional.cp_reconstruct(**t | {"u": u, "threshold": threshold}, gate="sigmoid")
        return sum(out.square().sum() for out in outs)

    grads = torch.func.grad(loss, argnums=(0, 1))(t["u"], t["threshold"])
    leaves = [t["u"].clone().requires_grad_(), t["threshold"].clone().requires_grad_()]
    for grad, want in zip(grads, torch.autograd.grad(loss(*leaves), leaves), strict=True):
        torch.testing.assert_close(grad, want)


ODD = torch.ones(5, 7)
BAD = {
    "weights-none": (dict(weights=[]), r"weights must be at least one tensor \[d_out, d_in\], got none"),
    "weights-number": (dict(weights=3), "weights must be tensors .*got int"),
    "weight-list": (dict(weights=[[1.0], [2.0]]), r"weights\[0\] must be a tensor .*got list"),
    "weight-dims": (dict(weights=[torch.ones(24)] * 2), r"weights\[0\] must be .*got torch.float32 \[24\]"),
    "weight-integer": (dict(weights=[torch.ones(24, 40, dtype=torch.int64)] * 2), r"weights\[0\] .*int64"),
    "weight-dtype": (dict(weights=[torch.ones(24, 40).to(torch.float8_e5m2)] * 2), r"weights\[0\] .*float8_e5m2"),
    "weight-shapes": (
        dict(weights=[torch.ones(24, 40), ODD]),
        r"weights\[1\] must be floating \[24, 40\], got .*\[5, 7",
    ),
    "weight-dtypes": (dict(weights=[torch.ones(24, 40), torch.ones(24, 40).half()]), r"weights\[1\] .*first's dtype"),
    "weight-device": (dict(weights=[torch.ones(24, 40), torch.ones(24, 40, device="meta")]), r"weights\[1\] .*device"),
    "cores-count": (dict(cores=torch.ones(3, 6, 6)), r"cores must be \[2, R, R\] or \[2, R\].*got \[3, 6, 6\]"),
    "cores-square": (dict(cores=torch.ones(2, 5, 6)), r"cores must be floating \[2, 6, 6\], got .*\[2, 5, 6\]"),
    "cores-rank-0": (dict(cores=torch.ones(2, 0)), "cores must be"),
    "cores-missing": (dict(cores=None), "cores must be .*got NoneType"),
    "u-shape": (dict(u=ODD), r"u must be floating \[6, 40\], got torch.float32 \[5, 7\]"),
    "u-missing": (dict(u=None), r"u must be \[6, 40\], got None"),
    "v-shape": (dict(v=ODD), r"v must be floating \[24, 6\], got torch.float32 \[5, 7\]"),
    "v-device": (dict(v=torch.ones(24, 6, device="meta")), "v must be on the device cpu, got meta"),
    "threshold-missing": (dict(threshold=None), r"threshold must be \[1\] or \[2\].*got None"),
    "threshold-shape": (dict(threshold=torch.ones(3)), r"threshold must be \[1\] or \[2\].*got \[3\]"),
    "threshold-number": (dict(threshold=0.1), "threshold must be a tensor or None, got float"),
    "threshold-unused": (dict(gate="none"), "threshold is not used with gate='none'"),
    "gate": (dict(gate="softer"), "gate must be one of 'none', 'soft', 'hard', 'sigmoid', got 'softer'"),
    "temperature": (dict(temperature=0.0), "temperature must be positive and finite, got 0.0"),
    "scale": (dict(scale=float("inf")), "scale must be finite, got inf"),
}


@both_paths
@pytest.mark.parametrize("changes, message", BAD.values(), ids=BAD)
def test_bad_input_names_the_argument(on_path, changes, message):
    with pytest.raises(ValueError, match=f"cp_reconstruct: {message}"):
        functional.cp_reconstruct(**arguments("soft") | {"gate": "soft"} | changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(weights=[]), r"weights must be at least one"),
        (dict(weights=[torch.ones(24, 40), ODD]), r"weights\[1\] must be \[24, 40\], got \[5, 7\]"),
        (dict(u=ODD), r"u must be \[6, 40\], got \[5, 7\]"),
        (dict(u=torch.ones(40, 6).T), "u must be contiguous"),
        (dict(v=torch.ones(24, 6).double()), "v must have scalar type"),
        (dict(cores=torch.ones(2)), r"cores must be \[K, R, R\] or \[K, R\], got \[2\]"),
        (dict(threshold=torch.ones(3)), r"threshold must be \[1\] or \[2\], got \[3\]"),
        (dict(gate=4), r"gate must be in \[0, 4\), got 4"),
        (dict(temperature=0.0), "temperature must be positive"),
        (dict(gate=3, keep=True), "keep is for the soft and the hard gate"),
    ],
)
def test_the_operator_itself_refuses_bad_input(changes, message):
    t = arguments("soft", requires_grad=False) | dict(gate=1, temperature=1.0, scale=1.0, keep=False) | changes
    with pytest.raises(RuntimeError, match=f"cp_reconstruct: {message}"):
        torch.ops.petx.cp_reconstruct_fwd(*t.values())


@pytest.mark.parametrize(
    "sides, gate, message",
    [
        (torch.ones(2, 24, 9, dtype=torch.uint8), 1, r"sides must be \[2, 24, 10\], got \[2, 24, 9\]"),
        (torch.ones(2, 24, 10), 1, "sides must have scalar type"),
        (torch.ones(2, 24, 10, dtype=torch.uint8), 3, "sides are for the soft and the hard gate"),
    ],
)
def test_the_backward_refuses_sides_that_do_not_fit(sides, gate, message):
    t = arguments("soft", requires_grad=False)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.petx.cp_reconstruct_bwd(*t.values(), sides, 15, 0, gate, 1.0, 1.0)
