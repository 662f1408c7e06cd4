"""The decoder's value adapters in one operation: equal to one by one, once a sequence, and left alone if need be."""

import copy

import pytest
import torch

from petx.tuners import describe
from tests.checks import Recorder
from tests.fixtures.tiny_hosts import HOSTS, batch, layers, logits, make_host, tuned

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def groups(model):
    return model.base_model.value_groups()


def one_by_one(model):
    model = copy.deepcopy(model)
    for group in groups(model):
        group.disconnect()
    return model


def value_calls(run):
    """Heads of every value adapter's operator that ``run()`` calls: the layers that it computes."""
    with Recorder() as recorder:
        run()
    calls = [args for func, args in recorder.calls if func._schema.name == "petx::gated_adapter_fwd"]
    names = [a.name for a in torch.ops.petx.gated_adapter_fwd.default._schema.arguments]
    found = [dict(zip(names, args, strict=False)) for args in calls]
    return [call["heads"] for call in found if call["placement"] == 1]


@pytest.mark.parametrize("kind", HOSTS)
def test_equals_one_by_one(kind):
    rate = dict(dropout=0.0) if "bart" in kind else dict(dropout_rate=0.0)
    model = tuned(make_host(kind, **rate).double()).train()
    alone = one_by_one(model)
    assert value_calls(lambda: model(**batch(kind))) == [2]
    assert value_calls(lambda: alone(**batch(kind))) == [1, 1]
    assert "values of 2 decoder layers: in one operation" in describe(model)
    torch.testing.assert_close(logits(model, kind), logits(alone, kind), rtol=1e-9, atol=1e-9)
    found, wanted = {}, {}
    for one, grads in ((model, found), (alone, wanted)):
        one(**batch(kind)).loss.backward()
        grads |= {name: p.grad for name, p in one.named_parameters() if p.requires_grad}
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-8, atol=1e-9, msg=name)


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_together_under_autocast(kind):
    """In the dtype of the value projections' results, as the layers would one by one."""
    model = tuned(kind)
    alone = one_by_one(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert value_calls(lambda: model(**batch(kind))) == [2]
        assert value_calls(lambda: alone(**batch(kind))) == [1, 1]
        assert "values of 2 decoder layers: in one operation" in describe(model)
        found, wanted = logits(model, kind).float(), logits(alone, kind).float()
    assert (found - wanted).norm() <= 0.02 * wanted.norm()


@pytest.mark.parametrize("kind", HOSTS)
def test_generation_computes_them_once(kind):
    model = tuned(kind, task_type="SEQ_2_SEQ_LM")
    inputs = {name: value for name, value in batch(kind).items() if name != "labels"}
    options = dict(max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert value_calls(lambda: model.generate(**inputs, **options)) == [2]
    wanted = one_by_one(model).generate(**inputs, **options, num_beams=3)
    assert torch.equal(model.generate(**inputs, **options, num_beams=3), wanted)
    assert torch.equal(model.generate(**inputs, **options, num_beams=3, use_cache=False), wanted)


def test_lets_go_of_what_nobody_took():
    model = tuned(make_host("bart"))
    model(**batch())
    (group,) = groups(model)
    assert not group._values and group._source is None

    def broken(*_):
        raise RuntimeError("on purpose")

    handle = model.base_model.model.model.decoder.layers[1].register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="on purpose"):
        model(**batch())
    assert not group._values and group._source is None
    handle.remove()
    assert copy.deepcopy(group).sites is not group.sites


def in_place(model):
    layers(model)[-1].base_layer.weight.data.mul_(2)  # which no version counter sees


def rounded_and_back(model):
    """Freed memory that another weight may get at once."""
    model.to(torch.bfloat16).to(torch.float32)


def assigned(model):
    state = {key: 2 * value for key, value in model.state_dict().items() if "v_proj.base_layer" in key}
    model.load_state_dict(state, strict=False, assign=True)


@pytest.mark.parametrize("change", [in_place, rounded_and_back, assigned])
def test_follows_the_frozen_weights(change):
    """The projections are one GEMM on their own weights, and nothing of them is a copy."""
    model = tuned(make_host("bart"))
    before = logits(model, "bart")
    change(model)
    after = logits(model, "bart")
    linears = [site.base_layer for site in groups(model)[0].sites]
    first, second = (linear.weight for linear in linears)
    assert groups(model)[0]._together.weights(linears) is not None
    assert second.data_ptr() == first.data_ptr() + first.nbytes
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, logits(one_by_one(model), "bart"), rtol=1e-4, atol=1e-4)


def disabled(model):
    model.base_model.disable_adapter_layers()


def hooked(model):
    layers(model)[-1].register_forward_hook(lambda module, args, output: output * 2)


def other_rank(model):
    layers(model)[-1].vlpet_adapter["default"].scale = 0.5


def trained(model):
    layers(model)[-1].base_layer.weight.requires_grad_(True)


def dropping(model):
    model.base_model.model.model.decoder.layerdrop = 1e-9


def checkpointed(model):
    model.gradient_checkpointing_enable({"use_reentrant": False})


@pytest.mark.parametrize("change", [disabled, hooked, other_rank, trained, dropping, checkpointed])
def test_one_by_one_if_they_are_not_alike(change):
    model = tuned(make_host("bart", dropout=0.0))
    change(model)
    model.train()
    assert groups(model)[0].obstacle() and "one by one" in describe(model)
    wanted = one_by_one(model)(**batch()).loss
    calls = value_calls(lambda: torch.testing.assert_close(model(**batch()).loss, wanted))
    assert 2 not in calls


def test_gates_and_phm_run_one_by_one():
    for options in (dict(decoder_granularity="middleX"), dict(modification="phm")):
        model = tuned(make_host("bart"), **options)
        assert "one by one: they have a gate, phm" in describe(model)
        assert torch.equal(logits(model, "bart"), logits(one_by_one(model), "bart"))


def test_a_single_layer_has_no_group():
    assert not groups(tuned(make_host("bart", decoder_layers=1)))


def test_unloading_disconnects():
    model = tuned(make_host("bart"))
    decoder = model.base_model.model.model.decoder
    assert decoder._forward_hooks
    model.unload()
    assert not decoder._forward_hooks
