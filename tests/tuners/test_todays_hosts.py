"""PETAL on today's vision-language models with nothing said of where it goes: tiny ones, and full-size ones counted."""

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import Florence2Config, LlamaConfig, LlamaForCausalLM, Phi3Config

from petx.errors import UserError
from petx.tuners import PetalConfig, adapted, describe
from tests.fixtures import hosts_checked, hosts_table, todays_vlms
from tests.fixtures.hosts_checked import logits
from tests.fixtures.tiny_vlms import make_vlm, petal

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
PAGE = Path(__file__).parents[2] / "docs" / "hosts.md"
EVERYDAY = ("gemma3", "qwen3_5")  # a norm behind the feed-forward; layers without query, key and value
# In Gemma 4 per-layer inputs come between; test_petal_tuner.py compares a Q-Former with its literal form.
OTHERWISE = ("gemma4", "instructblipvideo", "blip-2")


def each(families):
    marked = [family if family in EVERYDAY else pytest.param(family, marks=pytest.mark.slow) for family in families]
    return pytest.mark.parametrize("family", marked)


@each(todays_vlms.FAMILIES)
def test_attach_train_generate_save_load_merge(family, tmp_path):
    """As the page's table says it."""
    assert hosts_table.documented(PAGE.read_text(encoding="utf-8"), "tiny")[family] == hosts_checked.row(
        family, tmp_path
    )


@each([family for family in todays_vlms.FAMILIES if family not in OTHERWISE])
def test_a_layers_output_gets_the_query_transformation_of_its_attention(family):
    """Also behind a norm that follows the feed-forward, as in Gemma."""
    host = todays_vlms.make(family)
    model = petal(host, experts=0)
    tower = next(iter(model.base_model._towers.values()))
    with torch.no_grad():
        for factors in model.base_model.petal_shared["default"].factors.values():
            for v in factors.v.values():
                v.zero_()  # the residual alone
    tail, seen = tower.tails[0], {}
    layer, attention = (host.get_submodule(path) for path in (tail.spec.path, tail.spec.attention))
    hooks = [
        layer.register_forward_hook(lambda *call: seen.setdefault("out", _first(call[2]))),
        attention.register_forward_hook(lambda *call: seen.setdefault("a", _first(call[2]))),
    ]
    logits(model, family)
    tuned, rows = seen.pop("out"), seen.pop("a")
    with model.disable_adapter():
        logits(model, family)
    part = model.base_model.petal_shared["default"].transformation(tower.spec, 0)
    with torch.no_grad():
        wanted = part(rows, seen["out"])
    assert not torch.allclose(wanted, seen["out"], atol=1e-3)
    torch.testing.assert_close(tuned, wanted, rtol=1e-4, atol=1e-5)
    for hook in hooks:
        hook.remove()


def _first(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.slow
@pytest.mark.parametrize("family", todays_vlms.FAMILIES)
def test_the_table_of_hosts_is_what_full_size_models_give(family):
    table = hosts_table.documented(PAGE.read_text(encoding="utf-8"))
    assert table[family] == hosts_table.row(family)


def test_the_table_has_every_family():
    table = hosts_table.documented(PAGE.read_text(encoding="utf-8"))
    assert list(table) == list(todays_vlms.FAMILIES)
    assert list(hosts_table.documented(PAGE.read_text(encoding="utf-8"), "tiny")) == list(todays_vlms.FAMILIES)


def test_layers_whose_projections_are_in_one_are_told():
    told = describe(petal(todays_vlms.make("qwen3_5")))
    assert "1 x in_proj_qkv of model.language_model: query, key and value in one, left as they are" in told


def test_keys_that_serve_as_values_are_a_group_of_two():
    """Gemma 4's larger models take keys for values in their full attention."""
    config = todays_vlms.tiny_config("gemma4")
    config.text_config.attention_k_eq_v = True
    torch.manual_seed(0)
    model = petal(todays_vlms.build(config).eval().requires_grad_(False))
    kinds = {place.kind for place in adapted(model) if place.rank is not None}
    assert kinds == {"self-attention query", "self-attention key", "self-attention key and value"}
    model(**todays_vlms.batch("gemma4")).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)


def test_a_projector_may_be_named():
    host = todays_vlms.make("llava")
    model = petal(host, projector="multi_modal_projector.linear_2")
    assert list(model.base_model.petal_shared["default"].mixed)[0] == "model.multi_modal_projector.linear_2"


def test_a_projector_that_returns_no_tensor_is_told():
    host = todays_vlms.make("llava")
    model, projector = petal(host), host.model.multi_modal_projector
    projector.register_forward_hook(lambda module, args, output: (output,), prepend=True)
    with pytest.raises(UserError, match=r"model\.multi_modal_projector returns tuple; name another projector"):
        model(**todays_vlms.batch("llava"))


def test_experts_of_text_alone_need_no_projector():
    model = petal(_llama(), towers=["model"], expert_scope="text")
    assert list(model.base_model.petal_shared["default"].mixed) == ["model.embed_tokens"]


def _phi3_behind_a_projector():
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
    text = Phi3Config(**sizes, pad_token_id=0)
    return todays_vlms.build(
        type(todays_vlms.tiny_config("llava"))(
            text_config=text, vision_config=todays_vlms.tiny_config("llava").vision_config, image_token_index=60
        )
    )


def _llama():
    return LlamaForCausalLM(
        LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
    )


def _florence2():
    sizes = dict(encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16)
    text = dict(model_type="bart", d_model=16, vocab_size=64, encoder_attention_heads=2, decoder_attention_heads=2)
    vision = dict(depths=[1], embed_dim=[8], num_heads=[1], num_groups=[1], patch_size=[3], patch_stride=[2])
    vision |= dict(patch_padding=[1], patch_prenorm=[False], projection_dim=16, window_size=2)
    return todays_vlms.build(Florence2Config(text_config=text | sizes, vision_config=vision))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (_llama, {}, "LlamaForCausalLM has none: nothing in it looks as if it brought images into model .a projector"),
        (_florence2, {}, "it is an encoder-decoder without a Q-Former. Name the parts"),
        (
            _phi3_behind_a_projector,
            {},
            r"no attention in .*language_model has .* \(its projections are in one: qkv_proj\)",
        ),
        (lambda: todays_vlms.make("llava"), dict(projector="resampler"), "projector 'resampler' is not in the model"),
        (lambda: todays_vlms.make("llava"), dict(projector="k_proj"), "projector 'k_proj' could be .* whole path"),
        (
            _llama,
            dict(towers=["model"]),
            "none was found by its name and width: name it in projector, or set experts=0",
        ),
        (lambda: torch.nn.Sequential(torch.nn.Linear(4, 4)), {}, "no language model was found in it by get_decoder"),
    ],
)
def test_a_model_without_a_known_place_is_told_what_to_do(make, options, message):
    with pytest.raises(UserError, match=message):
        get_peft_model(make(), PetalConfig(rank=4, **options))


def test_the_language_model_behind_a_qformer_mixes_the_projection():
    model = petal(make_vlm("instructblip-llama"), towers=["language_model"])
    assert list(model.base_model.petal_shared["default"].mixed.values()) == ["image", "text"]
