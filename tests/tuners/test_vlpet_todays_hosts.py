"""VL-PET on decoder-only language models (``preset="decoder"``) and on T5Gemma 2, tiny and full-size."""

from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from petx.errors import UserError
from petx.tuners import VLPetConfig, adapted, describe, load_adapter
from tests.fixtures import hosts_table, todays_vlms
from tests.fixtures.tiny_hosts import make_host
from tests.fixtures.tiny_tuned import adapt, randomise
from tests.fixtures.todays_vlms import WIDTH

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
EVERYDAY = ("gemma3", "qwen3_5")
SMALL = dict(rank=8, heads=4, decoder_rank=4)
PAGE = Path(__file__).parents[2] / "docs" / "hosts.md"


def config_of(family, **options):
    return VLPetConfig(**SMALL | dict(preset="auto" if family == "t5gemma2" else "decoder") | options)


def logits(model, family):
    with torch.no_grad():
        return model(**todays_vlms.batch(family)).logits


def each(families):
    marked = [family if family in EVERYDAY else pytest.param(family, marks=pytest.mark.slow) for family in families]
    return pytest.mark.parametrize("family", marked)


@each(hosts_table.VLPET)
def test_attach_train_generate_save_load(family, tmp_path):
    frozen = logits(todays_vlms.make(family), family)
    model = adapt(todays_vlms.make(family), config_of(family)).eval()
    torch.testing.assert_close(logits(model, family), frozen, rtol=1e-4, atol=1e-4)  # it starts as the frozen model
    torch.manual_seed(1)
    randomise(model)
    tuned = logits(model, family)
    assert not torch.allclose(tuned, frozen, atol=1e-3)
    model.train()
    batch = todays_vlms.batch(family)
    model(**batch).loss.backward()
    own = [name for name, p in model.named_parameters() if ".vlpet_" in name]
    wrong = [
        name for name, p in model.named_parameters() if p.requires_grad != bool(p.grad is not None and p.grad.any())
    ]
    assert own and not wrong
    model.eval().zero_grad()

    prompt = {name: value for name, value in batch.items() if name != "labels"}
    options = dict(max_new_tokens=3, min_new_tokens=3, do_sample=False, suppress_tokens=todays_vlms.SPECIAL)
    with torch.no_grad():
        cached, whole = (model.generate(**prompt, **options, use_cache=use) for use in (True, False))
    assert torch.equal(cached, whole)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load_adapter(todays_vlms.make(family), tmp_path), family), tuned)
    with model.disable_adapter():
        assert torch.equal(logits(model, family), frozen)
    with pytest.raises(UserError, match="cannot be merged: at .*its large gate depends on the input"):
        model.merge_and_unload()
    assert describe(model).startswith("VL-PET adapter 'default':\n")


@pytest.mark.parametrize("granularity", ["large", "middleX", "middleY", "none"])
def test_a_site_computes_the_papers_formula(granularity):
    """s·G ⊙ (H + ΔH) of the attention's output, with X what the residual connection adds."""
    model = adapt(todays_vlms.make("gemma3"), config_of("gemma3", granularity=granularity)).eval()
    torch.manual_seed(1)
    randomise(model)
    layer = model.base_model.model.get_submodule("model.language_model.layers.1")
    site, seen = layer.self_attn.o_proj, {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, kwargs: seen.update(x=args[0]), with_kwargs=True),
        site.register_forward_hook(lambda _, args, output: seen.update(hidden=args[0], out=output)),
    ]
    logits(model, "gemma3")
    with torch.no_grad():
        wanted = site.vlpet_adapter["default"](site.base_layer(seen["hidden"]), seen["x"])
    assert torch.equal(seen["out"], wanted)
    assert not torch.allclose(wanted, site.base_layer(seen["hidden"]), atol=1e-3)
    for hook in hooks:
        hook.remove()


def test_where_it_goes():
    places = adapted(adapt(todays_vlms.make("qwen3_5"), config_of("qwen3_5")))
    layer = "model.language_model.layers"
    sites = {place.path: place.kind for place in places if place.granularity}
    assert sites == {
        f"{layer}.0.linear_attn.out_proj": "language model attention output",
        f"{layer}.0.mlp.down_proj": "language model feed-forward output",
        f"{layer}.1.self_attn.o_proj": "language model attention output",
        f"{layer}.1.mlp.down_proj": "language model feed-forward output",
    }
    norms = {place.path for place in places if place.kind == "trained norm"}
    assert {f"{layer}.0.input_layernorm", "model.language_model.norm"} <= norms
    assert not any("visual" in path for path in norms)


def test_t5gemma2_leaves_the_vision_tower_alone_and_keeps_merged_values_apart():
    model = adapt(todays_vlms.make("t5gemma2"), config_of("t5gemma2"))
    assert not any("vision_tower" in place.path for place in adapted(model))
    assert model.base_model.value_groups() == []
    assert {place.kind for place in adapted(model) if place.granularity} == {
        "encoder attention output",
        "encoder feed-forward output",
        "decoder merged attention value",
    }


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: todays_vlms.make("gemma3"), dict(granularity="small"), "answer's later tokens"),
        (lambda: make_host("bart"), {}, "preset='decoder' is for a decoder-only language model, and BartFor"),
        (lambda: todays_vlms.make("llava"), dict(preset="auto"), "give preset='decoder' for a decoder-only"),
    ],
)
def test_what_it_refuses(make, options, message):
    with pytest.raises(UserError, match=message):
        get_peft_model(make(), VLPetConfig(**SMALL | dict(preset="decoder") | options))


@pytest.mark.slow
@pytest.mark.parametrize("family", hosts_table.VLPET)
def test_the_table_of_hosts_is_what_full_size_models_give(family):
    assert hosts_table.documented(PAGE.read_text(encoding="utf-8"), "vlpet")[family] == hosts_table.vlpet_row(family)


def test_the_table_has_every_family():
    assert list(hosts_table.documented(PAGE.read_text(encoding="utf-8"), "vlpet")) == hosts_table.VLPET
    assert WIDTH % SMALL["heads"] == 0
