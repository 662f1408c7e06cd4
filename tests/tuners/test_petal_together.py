"""The frozen projections of one input as one GEMM: equal to one by one, without a copy, and left alone if need be."""

import copy

import pytest
import torch
from accelerate.utils import save as accelerate_save
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from petx.tuners import describe
from petx.tuners.petal import layer as petal_layer
from tests.fixtures.tiny_vlms import VLMS, make_vlm, petal, petal_layers, vlm_batch, vlm_logits

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
KIND = "instructblip-t5"


def groups(model):
    return [group for tower in model.base_model._towers.values() for group in tower.groups if len(group.layers) > 1]


def listen(module, args, output):
    return None


def apart(model):
    """A copy of ``model`` whose frozen projections are called one by one."""
    model = copy.deepcopy(model)
    for adapted in petal_layers(model):
        adapted.base_layer.register_forward_hook(listen)
    return model


@pytest.fixture
def calls(monkeypatch):
    """Number of projections of every call that makes them together."""
    seen, real = [], petal_layer.projected_update

    def counted(x, projected, u, v, cores, *rest):
        seen.append(len(cores))
        return real(x, projected, u, v, cores, *rest)

    monkeypatch.setattr(petal_layer, "projected_update", counted)
    return seen


def gradients(model, kind):
    torch.manual_seed(3)
    model(**vlm_batch(kind)).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", VLMS)
def test_equals_one_by_one(kind, calls):
    model = petal(kind, dropout=0.3).double().train()
    wanted = gradients(apart(model), kind)
    assert not calls
    found = gradients(model, kind)
    assert len(calls) == len(groups(model)) and all(group.obstacle() is None for group in groups(model))
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("kind", ["instructblip-t5", "llava"])
def test_under_autocast(kind, calls):
    """In the dtypes of the projections called one by one."""
    model = petal(kind, dropout=0.0)
    found, seen = [], []
    for one in (model, apart(model)):
        attention = groups(one)[0].layers[1]
        attention.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
        with torch.autocast("cpu", torch.bfloat16):
            grads = gradients(one, kind)
        found.append(grads)
    assert len(calls) == len(groups(model)) and set(seen) == {torch.bfloat16}
    for name, grad in found[1].items():
        assert found[0][name].dtype == grad.dtype == torch.float32
        assert (found[0][name] - grad).norm() <= 0.05 * grad.norm() + 1e-4, name


def test_no_memory_is_taken():
    def held(model):
        storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
        return sum(storages.values())

    host = make_vlm(KIND)
    before, parameters = held(host), dict(host.named_parameters())
    model = petal(host)
    own = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert held(model) - own == before
    vlm_logits(model, KIND)
    assert held(model) - own == before
    kept = {id(p) for p in model.parameters()}
    assert all(id(p) in kept for p in parameters.values())  # the host's own Parameter objects


def in_place(model):
    with torch.no_grad():
        groups(model)[0].layers[1].base_layer.weight.mul_(2)


def by_data(model):
    groups(model)[0].layers[1].base_layer.weight.data.mul_(2)
    groups(model)[0].layers[2].base_layer.bias.data.add_(1)


def another_parameter(model):
    linear = groups(model)[0].layers[0].base_layer
    linear.weight = nn.Parameter(2 * linear.weight.detach(), requires_grad=False)


def loaded(model):
    model.load_state_dict({key: value * 1.5 for key, value in model.state_dict().items() if "base_layer" in key}, False)


def assigned(model):
    state = {key: value * 1.5 for key, value in model.state_dict().items() if "base_layer" in key}
    model.load_state_dict(state, strict=False, assign=True)


def rounded(model):
    model.to(torch.bfloat16).to(torch.float32)


def merged_and_back(model):
    model.merge_adapter()
    vlm_logits(model, KIND)
    model.unmerge_adapter()


def copied_linears(model):
    for adapted in petal_layers(model):
        adapted.base_layer = copy.deepcopy(adapted.base_layer)


CHANGES = [in_place, by_data, loaded, assigned, rounded, merged_and_back, copied_linears]


@pytest.mark.parametrize("change", CHANGES)
def test_follows_the_frozen_weights(change, calls):
    model = petal(KIND, dropout=0.0)
    before = vlm_logits(model, KIND)
    change(model)
    calls.clear()
    after = vlm_logits(model, KIND)
    assert len(calls) == len(groups(model))
    assert torch.equal(after, before) == (change in (merged_and_back, copied_linears))
    torch.testing.assert_close(after, vlm_logits(apart(model), KIND), rtol=1e-4, atol=1e-4)


def test_a_weight_that_was_exchanged_is_seen(calls):
    model = petal(KIND)
    calls.clear()
    another_parameter(model)
    found = vlm_logits(model, KIND)
    assert len(calls) == len(groups(model)) and "not fused" not in describe(model)
    torch.testing.assert_close(found, vlm_logits(apart(model), KIND), rtol=1e-4, atol=1e-4)


def test_a_base_that_is_trained_and_frozen_again(calls):
    model = petal(KIND).train()
    linear = groups(model)[0].layers[0].base_layer
    linear.weight.requires_grad_(True)
    optimizer = torch.optim.SGD([linear.weight], lr=1.0)
    model(**vlm_batch(KIND)).loss.backward()
    assert len(calls) == len(groups(model)) - 1 and "a projection's own weight or bias is trained" in describe(model)
    optimizer.step()
    linear.weight.requires_grad_(False)
    calls.clear()
    found = vlm_logits(model.eval(), KIND)
    assert len(calls) == len(groups(model))
    torch.testing.assert_close(found, vlm_logits(apart(model), KIND), rtol=1e-4, atol=1e-4)


def test_copies_and_saved_weights_are_independent(tmp_path):
    model = petal(KIND)
    wanted = vlm_logits(model, KIND)
    other = copy.deepcopy(model)
    assert torch.equal(vlm_logits(other, KIND), wanted) and all(group.obstacle() is None for group in groups(other))
    in_place(other)
    assert torch.equal(vlm_logits(model, KIND), wanted)
    save_file({k: v for k, v in model.state_dict().items() if "base_layer" in k}, tmp_path / "base.safetensors")
    saved = load_file(tmp_path / "base.safetensors")
    assert all(torch.equal(saved[key], value) for key, value in model.state_dict().items() if key in saved)
    model.merge_adapter()
    assert not torch.equal(vlm_logits(model, KIND), vlm_logits(other, KIND))


def save_dict(model, file):
    accelerate_save(model.state_dict(), file, safe_serialization=True)


@pytest.mark.parametrize("save", [save_model, save_dict])
def test_what_saves_by_storage_keeps_every_weight(tmp_path, save):
    """Of weights in one storage accelerate keeps the first, and safetensors refuses them."""
    model = petal(KIND)
    for one in (model, model.unload()):
        save(one, tmp_path / "all.safetensors")
        saved = load_file(tmp_path / "all.safetensors")
        frozen = {key: value for key, value in one.state_dict().items() if ".qformer." in f".{key}"}
        assert frozen and all(torch.equal(saved[key], value) for key, value in frozen.items())


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_weights_that_are_handed_in_for_a_pass(calls):
    """As functional_call does, in a batch of models too, and FSDP, which makes them attributes."""
    model = petal(KIND, dropout=0.0)
    wanted, inputs = vlm_logits(model, KIND), vlm_batch(KIND)
    stacked = {name: torch.stack([one.detach()] * 2) for name, one in model.named_parameters()}
    calls.clear()
    found = torch.func.vmap(lambda given: torch.func.functional_call(model, given, (), inputs).logits)(stacked)
    torch.testing.assert_close(found, wanted.expand(2, *wanted.shape), rtol=1e-4, atol=1e-4)
    linear = groups(model)[0].layers[1].base_layer
    weight = linear.weight.detach()
    del linear.weight
    linear.weight = weight
    assert not calls and torch.equal(vlm_logits(model, KIND), wanted)
    assert len(calls) == len(groups(model)) - 1 and "handed in for this pass" in describe(model)


def hooked(linear):
    linear.register_forward_hook(lambda module, args, output: output * 2)


def patched(linear):
    linear.forward = lambda x, own=linear.forward: 2 * own(x)


class OwnLinear(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def subclassed(linear):
    linear.__class__ = OwnLinear


def without_bias(linear):
    linear.bias = None


REASONS = {
    hooked: "hooks listen to a frozen projection",
    patched: "a frozen projection is not torch's own linear",
    subclassed: "a frozen projection is not torch's own linear",
    without_bias: "some of the frozen projections have a bias",
}


@pytest.mark.parametrize("change", REASONS)
def test_one_by_one_where_a_call_would_be_skipped(change, calls):
    model = petal(KIND)
    before = vlm_logits(model, KIND)
    assert "fused: 5 x the frozen projections" in describe(model)
    change(groups(model)[0].layers[2].base_layer)
    calls.clear()
    found = vlm_logits(model, KIND)
    assert len(calls) == len(groups(model)) - 1
    assert torch.equal(found, before) == (change is without_bias)  # whose values are zeros at first
    assert f"not fused: 1 x projections of one input: {REASONS[change]}" in describe(model)
    torch.testing.assert_close(found, vlm_logits(apart(model), KIND), rtol=1e-4, atol=1e-4)


def test_a_hook_on_every_module_runs(calls):
    model, seen = petal(KIND), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        vlm_logits(model, KIND)
    finally:
        handle.remove()
    assert not calls and {adapted.base_layer for adapted in petal_layers(model)} <= set(seen)


def test_tied_projections_stay_tied(calls):
    host = make_vlm(KIND)
    attention = host.qformer.encoder.layer[0].attention.attention
    attention.key.weight = attention.query.weight
    model = petal(host)
    calls.clear()
    found = vlm_logits(model, KIND)
    linears = [adapted.base_layer for adapted in groups(model)[0].layers]
    assert linears[0].weight is linears[1].weight and len(calls) == len(groups(model)) - 1
    torch.testing.assert_close(found, vlm_logits(apart(model), KIND), rtol=1e-4, atol=1e-4)


def test_hooks_on_the_adapted_projections_run(calls):
    """They are called by the host's attention, whatever its class."""
    model = petal(KIND)
    attention = model.base_model.model.qformer.encoder.layer[0].attention.attention
    before = vlm_logits(model, KIND)
    handle = attention.key.register_forward_hook(lambda module, args, output: output * 0)
    calls.clear()
    assert not torch.equal(vlm_logits(model, KIND), before) and len(calls) == len(groups(model))
    handle.remove()

    class OwnAttention(type(attention)):
        def forward(self, *args, **kwargs):
            out, *rest = super().forward(*args, **kwargs)
            return out + 1, *rest

    attention.__class__ = OwnAttention
    calls.clear()
    found = vlm_logits(model, KIND)
    assert len(calls) == len(groups(model)) and not torch.equal(found, before)


def test_beside_other_processes_memory_moves_only_with_the_model(calls, monkeypatch):
    """There a wrapper may own the weights' memory while the model runs."""
    monkeypatch.setattr(petal_layer, "distributed", lambda: True)
    model = petal(KIND)
    vlm_logits(model, KIND)
    assert len(calls) == len(groups(model))
    other = copy.deepcopy(model)
    calls.clear()
    vlm_logits(other, KIND)
    assert not calls and "other processes run" in describe(other)
    vlm_logits(other.to(torch.float64), KIND)
    assert len(calls) == len(groups(other)) and "not fused" not in describe(other)


def test_two_adapters_and_none(calls):
    from petx.tuners import PetalConfig

    model = petal(KIND)
    model.add_adapter("second", PetalConfig(rank=4, experts=2, expert_rank=2))
    first = vlm_logits(model, KIND)
    model.set_adapter("second")
    calls.clear()
    assert not torch.equal(vlm_logits(model, KIND), first) and len(calls) == len(groups(model))
    calls.clear()
    with model.disable_adapter():
        vlm_logits(model, KIND)
    assert not calls
