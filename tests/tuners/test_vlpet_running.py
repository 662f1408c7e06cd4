"""Models with VL-PET adapters at work: checkpointing, generating, low precision, compiling, loading without memory."""

import copy
import re

import pytest
import torch
from peft import get_peft_model

from petx.errors import UserError
from petx.nn import GatedAdapter
from petx.tuners import VLPetConfig
from tests.fixtures.tiny_hosts import HOSTS, WIDTH, batch, layers, logits, make_host, tuned

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_same_gradients(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", HOSTS)
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("granularity", ["large", "small"])
def test_gradient_checkpointing_changes_no_gradient(kind, use_reentrant, granularity):
    """Two passes before one backward: what a site is handed must belong to the pass that is recomputed."""

    def run(model):
        model.train()
        first, second = batch(kind), batch(kind, seed=7, padded=False)
        (model(**first).loss + 2 * model(**second).loss).backward()
        return gradients(model)

    options = dict(dropout=0.0) if "bart" in kind else dict(dropout_rate=0.0)
    model = tuned(make_host(kind, **options), granularity=granularity, mask_padding=granularity == "small")
    checkpointed = copy.deepcopy(model)
    checkpointed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert_same_gradients(run(checkpointed), run(model))


@pytest.mark.parametrize("kind", HOSTS)
def test_generation_adapts_the_values_once_and_does_not_depend_on_the_cache(kind):
    model = tuned(kind, decoder_granularity="small", mask_padding=True, task_type="SEQ_2_SEQ_LM")
    inputs = {name: value for name, value in batch(kind).items() if name != "labels"}
    calls = []
    for layer in layers(model):
        layer.register_forward_hook(lambda module, *_: calls.append(module.kind))
    options = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False)
    cached = model.generate(**inputs, **options)
    assert sorted(calls) == sorted(layer.kind for layer in layers(model))
    assert torch.equal(model.generate(**inputs, **options, use_cache=False), cached)
    beams = model.generate(**inputs, **options, num_beams=3)
    assert torch.equal(model.generate(**inputs, **options, num_beams=3, use_cache=False), beams)
    alone = model.generate(**{name: value[:1] for name, value in inputs.items()}, **options, num_beams=3)
    assert torch.equal(alone, beams[:1])


@pytest.mark.parametrize("kind", HOSTS)
def test_autocast(kind):
    model = tuned(kind, spread=0.1)
    wanted = logits(model, kind)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(**batch(kind))
    out.loss.float().backward()
    assert (out.logits - wanted).abs().max() < 0.1 * wanted.abs().max()
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in gradients(model).values())


@pytest.mark.parametrize("granularity", ["large", "small", "none"])
def test_half_precision_t5_with_its_wo_in_float32(granularity):
    host = make_host("t5").bfloat16()
    for block in host.encoder.block:
        block.layer[1].DenseReluDense.wo.float()
    model = tuned(host, granularity=granularity, spread=0.1)
    assert {p.dtype for layer in layers(model) for p in layer.vlpet_adapter.parameters()} == {torch.float32}
    model.train()
    model(**batch("t5")).loss.backward()
    wanted = logits(tuned(make_host("t5"), granularity=granularity, spread=0.1), "t5")
    assert (logits(model.eval(), "t5").float() - wanted).abs().max() < 0.1 * wanted.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "granularity"), [("bart", "large"), ("t5", "small")])
def test_encoder_compiles_into_one_graph(kind, granularity):
    model = tuned(kind, granularity=granularity, mask_padding=granularity == "small")
    encoder = model.get_base_model().get_encoder()
    inputs = {name: batch(kind)[name] for name in ("input_ids", "attention_mask")}
    compiled = torch.compile(lambda **inputs: encoder(**inputs).last_hidden_state, fullgraph=True, backend="aot_eager")
    for seed in (2, 3):
        inputs["input_ids"] = batch(kind, seed=seed)["input_ids"]
        found, wanted = compiled(**inputs), encoder(**inputs).last_hidden_state
        torch.testing.assert_close(found, wanted)
    found.square().sum().backward()
    found = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    model.zero_grad()
    wanted.square().sum().backward()
    wanted = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    assert any("gate" in name for name in wanted)
    assert_same_gradients(found, wanted)


@pytest.mark.parametrize("kind", HOSTS)
def test_models_without_memory_take_adapters(kind):
    with torch.device("meta"):
        model = get_peft_model(HOSTS[kind](), VLPetConfig(modification="phm", heads=1))
    assert {p.device.type for p in model.parameters()} == {"meta"} and len(layers(model)) == 6


def test_adapter_keeps_its_start_on_a_loaded_host(tmp_path):
    """transformers initialises every linear of a model that it loads; the adapter comes after that."""
    make_host("vl_t5").save_pretrained(tmp_path)
    host = type(make_host("vl_t5")).from_pretrained(tmp_path)
    model = get_peft_model(host, VLPetConfig(rank=8))
    for layer in layers(model):
        adapter = layer.vlpet_adapter.default
        assert isinstance(adapter, GatedAdapter) and not adapter.up.weight.any() and not adapter.up.bias.any()
        assert 0.4 * WIDTH**-0.5 < adapter.down.weight.std() < WIDTH**-0.5


def test_forward_reports_a_mask_it_cannot_read():
    model = tuned("bart", granularity="small", mask_padding=True)
    site = model.base_model.model.model.encoder.layers[0].fc2
    with pytest.raises(UserError, match=re.escape("called without attention_mask=")):
        site._receive_mask(site, (), {})
    site._receive_mask(site, (), {"attention_mask": torch.ones(2, 3, 4)})
    with pytest.raises(UserError, match=r"needs a \[B, L\] or \[B, 1, Q, L\] attention mask, got \[2, 3, 4\]"):
        site(torch.randn(2, 4, 48))
