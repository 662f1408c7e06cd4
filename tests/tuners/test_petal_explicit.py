"""PETAL's explicit form, in which every adapted weight is written out, with the threshold on the update's entries."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model

from petx import reference
from petx.errors import UserError
from petx.tuners import PetalConfig, describe, load_adapter, parameter_counts
from tests.fixtures.tiny_vlms import make_vlm, petal, petal_layers, vlm_batch, vlm_logits

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
KIND = "instructblip-t5"
THRESHOLDS = ("none", "soft", "hard", "sigmoid")


def explicit(threshold="soft", host=KIND, **options):
    options = dict(dropout=0.0, init_output="uniform", threshold_init=0.02, temperature=0.1) | options
    return petal(host, form="explicit", threshold=threshold, **options)


def written_out(layer):
    """W + gate(V M(p)ᵀ U) of a layer by the readable reference."""
    parts, spec = layer.group.tower.parts["default"], layer.group.spec
    factors = parts.factors[spec.factors]
    cores = parts.cores(spec.factors, layer.petal_mode["default"].unsqueeze(0))
    options = dict(gate=factors.gate, temperature=factors.temperature)
    v = factors.v[str(spec.out_features)]
    weight = layer.get_base_layer().weight
    return reference.cp_reconstruct([weight], factors.u, v, cores, factors.threshold, scale=1.0, **options)[0]


@pytest.mark.parametrize("core", ["full", "diagonal"])
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_every_projection_has_the_reference_weight(threshold, core):
    model = explicit(threshold, make_vlm(KIND).double(), core=core)
    plain = copy.deepcopy(model)
    for layer in petal_layers(plain):
        with torch.no_grad():
            weight = written_out(layer)
        assert not torch.equal(weight, layer.get_base_layer().weight)
        layer.get_base_layer().weight = torch.nn.Parameter(weight)
        layer.forward = layer.base_layer.forward
    batch = vlm_batch(KIND)
    batch["pixel_values"] = batch["pixel_values"].double()
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, plain(**batch).logits, rtol=1e-9, atol=1e-9)


def test_without_a_threshold_it_is_the_factored_form():
    model, factored = explicit("none"), petal(KIND, dropout=0.0, init_output="uniform")
    torch.testing.assert_close(vlm_logits(model, KIND), vlm_logits(factored, KIND), rtol=1e-4, atol=1e-5)
    losses = [one(**vlm_batch(KIND)).loss for one in (model, factored)]
    sum(losses).backward()
    for (name, found), wanted in zip(model.named_parameters(), factored.parameters(), strict=True):
        if wanted.grad is not None:
            torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_entries_below_the_threshold_leave_their_weight_alone():
    model = explicit("hard", threshold_init=0.05)
    layer = petal_layers(model)[0]
    layer.group.tower.parts["default"].factors["text"].threshold.data.fill_(0.05)
    frozen, (weight, _) = layer.get_base_layer().weight, layer.merged_tensors("default")
    kept = weight == frozen
    assert 0.01 < kept.float().mean() < 0.99
    assert ((weight - frozen).abs()[~kept] > 0.05 - 1e-6).all()


@pytest.mark.parametrize("threshold", ["soft", "hard", "sigmoid"])
def test_gradients_of_everything(threshold):
    """Against differences, for the gates whose gradient is the derivative; the hard one passes its straight through."""
    model = explicit(threshold, make_vlm(KIND).double(), experts=0, query_transform=False, rank=2)
    attention = model.base_model.model.qformer.encoder.layer[1].attention.attention
    parts = attention.query.group.tower.parts["default"]
    x = torch.randn(3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    factors = parts.factors["text"]
    leaves = [attention.key.petal_mode["default"], factors.threshold, factors.cores.core]

    def outputs(*_):
        attention.query.group.forget()
        return attention.key(x).sum(), attention.value(x).square().sum()

    if threshold != "hard":
        assert torch.autograd.gradcheck(outputs, leaves)
    grads = torch.autograd.grad(sum(outputs()), [*leaves, factors.u, factors.v["32"]])
    assert all(grad.any() for grad in grads)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_changes_no_gradient(use_reentrant):
    model = explicit("sigmoid").train()
    again = copy.deepcopy(model)
    again.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    for one in (model, again):
        torch.manual_seed(0)
        one(**vlm_batch(KIND)).loss.backward()
    for (name, found), wanted in zip(again.named_parameters(), model.parameters(), strict=True):
        if wanted.grad is not None:
            torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_merged_saved_and_loaded_it_gives_the_same_bits(tmp_path):
    model = explicit("soft")
    wanted = vlm_logits(model, KIND)
    model.save_pretrained(tmp_path)
    for again in (PeftModel.from_pretrained(make_vlm(KIND), tmp_path), load_adapter(make_vlm(KIND), tmp_path)):
        config = again.peft_config["default"]
        assert config.form == "explicit" and torch.equal(vlm_logits(again.eval(), KIND), wanted)
    model.merge_adapter()
    assert torch.equal(vlm_logits(model, KIND), wanted)
    model.unmerge_adapter()
    assert torch.equal(vlm_logits(model, KIND), wanted)


def test_a_hook_on_the_frozen_linear_runs():
    model, seen = explicit("none"), []
    petal_layers(model)[0].base_layer.register_forward_hook(lambda module, args, out: seen.append(out.shape[-1]))
    vlm_logits(model, KIND)
    assert seen == [32]


def test_it_is_described_and_counted():
    model = explicit("soft")
    assert "explicit: every adapted weight" in describe(model) and "soft threshold on the update's" in describe(model)
    counts, factored = parameter_counts(model), parameter_counts(petal(KIND, threshold="soft"))
    assert counts["trainable"] == factored["trainable"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(), "set dropout=0"),
        (dict(dropout=0.0, threshold="soft"), "nothing would ever train"),
        (dict(dropout=0.0, threshold="hard", threshold_per_rank=True), "threshold_per_rank"),
        (dict(form="written"), "form must be one of 'factored', 'explicit', got 'written'"),
        (dict(dropout=0.0, expert_beta=0.0), "experts would never train"),
    ],
)
def test_what_cannot_be_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        PetalConfig(**dict(form="explicit") | options)


def test_a_threshold_above_every_update_is_refused():
    host = make_vlm(KIND)
    names = [name for name, _ in host.named_modules()]
    config = PetalConfig(
        rank=4, form="explicit", dropout=0.0, threshold="soft", threshold_init=50.0, init_output="uniform"
    )
    with pytest.raises(UserError, match="no entry of the update is above threshold_init=50"):
        get_peft_model(host, config)
    assert [name for name, _ in host.named_modules()] == names
