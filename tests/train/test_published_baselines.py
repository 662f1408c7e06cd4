"""Baselines as published: exact counts on the papers' models, what each computes, and sizes given or found."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoConfig

from petx import baselines, hosts, tasks
from petx.baselines._sizes import counts, rank_of_size
from petx.baselines.petal import information_bottleneck
from petx.baselines.scaled_lora import ScaledLinear
from petx.errors import UserError
from petx.models import build_skeleton
from petx.models.instruct_blip_sizes import QFORMER
from petx.train import vlpet
from petx.train.petal import arguments as petal_arguments
from petx.train.vlpet import arguments
from petx.tuners.vlpet.layer import VLPetLayer
from tests.fixtures import image_text, tiny_hosts, tiny_vlms
from tests.fixtures.tiny_tuned import randomise

BART = 139_420_416 + 200 * 768  # with the new tokens
VISUAL = {"vl_bart": 1_582_848, "vl_t5": 1_581_312}
NORMS = {"vl_bart": (6 * 5 + 2) * 2 * 768, "vl_t5": (12 * 5 + 2) * 768}
# VL-PET's table: new modules, what is trained of the host beside the visual embedding, share in per cent.
SIZES = {
    ("vl_bart", "full"): (0, BART, 100.0),
    ("vl_bart", "bitfit"): (0, 6 * (8_448 + 12_288) + 2 * 768, 1.2106),
    ("vl_bart", "prompt"): (40 * 768 + 768 * 800 + 800 + 800 * 768 + 768, 0, 1.9969),
    ("vl_bart", "lora"): (36 * 2 * 128 * 768, 6 * (8_448 + 12_288) + 2 * 768, 5.9275),
    ("vl_bart", "vl-adapter"): (30 * 148_320, NORMS["vl_bart"], 4.1767),
    ("vl_bart", "compacter"): (30 * (2 * (8 + 2 * 48 * 384) + 96 + 768), NORMS["vl_bart"], 2.6990),
    ("vl_bart", "hyperformer"): (  # 5 places of the two stacks, 2 embeddings of 512 joined to 8, and the tasks'
        9 * 5 * (2 * 768 * 96 + 768 + 96) + 2 * (1025 * 128 + 129 * 8 + 2 * 8 + 6 * 512) + 4 * 512,
        NORMS["vl_bart"],
        5.7926,
    ),
    ("vl_t5", "lora"): (72 * 2 * 150 * 768, 0, 7.5354),
    ("vl_t5", "vl-adapter"): (60 * (2 * 192 * 768 + 192 + 768), NORMS["vl_t5"], 7.9991),
}


@pytest.mark.parametrize("kind, arm", SIZES)
def test_vlpets_table(kind, arm):
    backbone = {"vl_bart": "bart", "vl_t5": "t5"}[kind]
    settings = arguments.checked(arguments.read_preset(f"paper-{backbone}-image"))
    host, model = hosts.find(kind), build_skeleton(f"{backbone}-base")
    frozen = sum(p.numel() for p in model.parameters())
    with torch.device("meta"):
        built = baselines.find(arm, "vlpet").build(host, model, settings)
    counted = counts(host, built)
    new, of_host, share = SIZES[kind, arm]
    assert counted["projector"] == VISUAL[kind]
    assert (counted["trainable"], counted["total"]) == (new + of_host + VISUAL[kind], frozen + new)
    assert round(100 * counted["trainable"] / counted["total"], 4) == share
    if kind == "vl_bart":
        assert frozen == BART + VISUAL[kind]


@pytest.fixture(scope="module")
def q_former():
    """The paper's Q-Former and projection; image encoder and language model have its widths and a layer each."""
    text = dict(vocab_size=60, d_model=2048, d_ff=8, d_kv=8, num_layers=1, num_heads=1, decoder_start_token_id=0)
    config = transformers.InstructBlipConfig(
        vision_config=dict(hidden_size=1408, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1),
        qformer_config=QFORMER,
        text_config=transformers.T5Config(**text),
        num_query_tokens=32,
    )

    def build():
        with torch.device("meta"):
            return transformers.InstructBlipForConditionalGeneration(config)

    return build


LINEARS = [(768, 768)] * (12 * 3 + 6) + [(1408, 768)] * 6 * 2  # of all attentions
DEAD_FFN = 768 * 3072 + 3072 + 3072 * 768 + 768 + 2 * 768  # the text's, of the last layer: nothing reads it
PETALS_TABLE = {
    "scaled-lora": 11_648_310,
    "lora": sum(128 * (width + height) for width, height in LINEARS),
    "adapter": 2_388_480,  # used; the released code registers 2,396,160 more
    "head": 4_724_736 // 2,  # the text's half leads nowhere
    "aurora": 802_176 - 18_432,  # scales and shifts that the released code registers and never reads
    "full": 187_262_464 - DEAD_FFN,
}


@pytest.mark.parametrize("arm", PETALS_TABLE)
def test_petals_table(q_former, arm):
    settings = petal_arguments.checked(petal_arguments.read_preset("paper-okvqa") | {"full_vision_norm": True})
    with torch.device("meta"):
        built = baselines.find(arm, "petal").build(hosts.find("instruct_blip"), q_former(), settings)
    assert counts(hosts.find("instruct_blip"), built)["trainable"] == PETALS_TABLE[arm]


def test_the_bottleneck_reads_the_words_of_the_tokenizer(q_former, monkeypatch):
    """T5's tokenizer has 28 words fewer than its model, columns that no label names: 2 x 33 of CLUB's parameters."""
    sizes = {}
    for words in (None, 32_100):
        given = {"ib": "authors", "ib_vocabulary": words}
        settings = petal_arguments.checked(petal_arguments.read_preset("paper-okvqa") | given)
        config = q_former().config
        config.text_config.vocab_size = 32_128
        with torch.device("meta"):
            sizes[words] = sum(p.numel() for p in information_bottleneck(config, settings).parameters())
    assert sizes[32_100] == 2_307_210 - 1 and sizes[None] - sizes[32_100] == 28 * 2 * 33
    settings.ib_vocabulary = 32_129
    with pytest.raises(UserError, match="ib_vocabulary must be at most the language model's 32128, got 32129"):
        information_bottleneck(config, settings)
    with pytest.raises(UserError, match="ib_vocabulary is for ib=authors and corrected, got ib=off"):
        petal_arguments.checked({"steps": 1, "ib_vocabulary": 9})
    # A processor adds the image's token, which is no label's.
    config.image_token_id = 32_100
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda host: config)
    monkeypatch.setattr(hosts.find("instruct_blip"), "check_texts", lambda *_: None)
    for host, tokens in ((None, 32_100), ("blip", 32_101)):
        tokenizer, settings.host = SimpleNamespace(text=range(tokens)), host
        settings.ib_vocabulary = 32_100
        hosts.find("instruct_blip").dataset(tasks.find("okvqa"), [], None, tokenizer, settings, "train")
        settings.ib_vocabulary = 32_099
        with pytest.raises(UserError, match="ib_vocabulary must be at least the tokenizer's 32100 tokens, got 32099"):
            hosts.find("instruct_blip").dataset(tasks.find("okvqa"), [], None, tokenizer, settings, "train")


def built(arm, kind="vl_bart", **more):
    settings = arguments.checked({"steps": 1, "rank": 8, "gate_rank": 8, "decoder_rank": 8, "arms": [arm]} | more)
    torch.manual_seed(1)
    return baselines.find(arm, "vlpet").build(hosts.find(kind), tiny_hosts.make_host(kind), settings)


@pytest.mark.parametrize("kind, ends", [("vl_bart", ("out_proj", "fc2")), ("vl_t5", ("Attention.o", ".wo"))])
@pytest.mark.parametrize("arm", ["vl-adapter", "compacter"])
def test_an_adapter_behind_every_sub_layer(kind, ends, arm):
    """As the frozen host with h + U gelu(D h) in place of each sub-layer's output."""
    model, plain = built(arm, kind, adapter_rank=4).eval(), tiny_hosts.make_host(kind)
    before = tiny_hosts.logits(plain, kind)
    randomise(model, within="vlpet_adapter")
    layers = {name.removeprefix("base_model.model."): one for name, one in model.named_modules()}
    layers = {name: one for name, one in layers.items() if isinstance(one, VLPetLayer)}
    assert len(layers) == 2 * 2 + 2 * 3 and all(name.endswith(ends) for name in layers)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    norms = [name for name, _ in plain.named_modules() if "norm" in name.lower() and "visual" not in name]
    assert norms and all(f"base_model.model.{name}.modules_to_save.default.weight" in trained for name in norms)

    def behind(adapter):
        def hook(_, inputs, h):
            inner = nn.functional.gelu(h @ adapter.down.weight.T + adapter.down.bias, approximate="tanh")
            return h + inner @ adapter.up.weight.T + adapter.up.bias

        return hook

    for name, layer in layers.items():
        plain.get_submodule(name).register_forward_hook(behind(layer.vlpet_adapter["default"]))
    wanted = tiny_hosts.logits(plain, kind)
    assert torch.allclose(tiny_hosts.logits(model, kind), wanted, atol=1e-5)
    assert not torch.allclose(before, wanted, atol=1e-2)


@pytest.mark.parametrize("arm", ["vl-adapter", "compacter", "lora"])
def test_by_default_as_large_as_the_method(arm):
    host = hosts.find("vl_bart")
    wanted, got = (counts(host, built(one))["trainable"] for one in ("vlpet", arm))
    assert got == pytest.approx(wanted, rel=0.1)
    given = built(arm, adapter_rank=2, lora_rank=2)
    assert counts(host, given)["trainable"] < got and baselines.find(arm, "vlpet").counts(given) == {"rank_used": 2}


def test_a_rank_of_a_unit_is_its_multiple():
    assert rank_of_size(110, lambda rank: 10 * rank, unit=4) == 12
    assert rank_of_size(1, lambda rank: 10 * rank, unit=4) == 4


def test_lora_has_the_published_scale():
    layers = [m for m in built("lora", lora_rank=8, lora_alpha=2.0).modules() if hasattr(m, "lora_A")]
    assert layers and {layer.scaling["default"] for layer in layers} == {0.25}


def test_a_rank_for_images_needs_a_qformer():
    with pytest.raises(UserError, match="lora_image_rank is for a Q-Former, got 2 and "):
        built("lora", lora_image_rank=2)


def test_an_order_that_does_not_divide_the_bottleneck_is_refused():
    with pytest.raises(UserError, match="compacter_order must divide adapter_rank, got 2 and 5"):
        arguments.checked({"steps": 1, "arms": ["compacter"], "adapter_rank": 5})


def test_scaled_lora_begins_as_the_frozen_layer_and_learns_its_scale():
    torch.manual_seed(0)
    frozen = nn.Linear(6, 4).requires_grad_(False)
    layer, x = ScaledLinear(frozen, 3), torch.randn(2, 5, 6)
    assert torch.equal(layer(x), frozen(x))
    with torch.no_grad():
        for parameter in (layer.up.weight, layer.up.bias, layer.down.bias, layer.scale):
            parameter.normal_()
    update = (x @ layer.down.weight.T + layer.down.bias) @ layer.up.weight.T + layer.up.bias
    assert torch.allclose(layer(x), frozen(x) + layer.scale * update)
    layer(x).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters() if p.requires_grad)


def test_aurora_is_petal_without_experts_and_refused_where_it_would_be_petal_itself():
    settings = petal_arguments.checked({"steps": 1, "arms": ["aurora"], "rank": 4})
    model = baselines.find("aurora", "petal").build(hosts.find("blip2"), tiny_vlms.make_vlm("blip2-t5"), settings)
    assert model.peft_config["default"].experts == 0 and model.peft_config["default"].threshold == "none"
    with pytest.raises(UserError, match="arm aurora would be PETAL itself"):
        dataclasses.replace(settings, experts=0, threshold="none", ib="off").check()


def test_full_tuning_may_train_the_image_features_norm():
    host, full = hosts.find("blip2"), baselines.find("full", "petal")
    settings = petal_arguments.checked({"steps": 1, "arms": ["full"]})
    sizes = []
    for norm in (False, True):
        chosen = dataclasses.replace(settings, full_vision_norm=norm)
        sizes.append(counts(host, full.build(host, tiny_vlms.make_vlm("blip2-t5"), chosen))["trainable"])
    norm = tiny_vlms.make_vlm("blip2-t5").vision_model.post_layernorm
    assert sizes[1] - sizes[0] == sum(p.numel() for p in norm.parameters()) > 0
    with pytest.raises(UserError, match="full_vision_norm: this LLaVA has no norm behind its image encoder"):
        full.build(hosts.find("llava"), tiny_vlms.make_vlm("llava"), chosen)


def test_the_tasks_names_can_be_left_out():
    for wanted, prompt in ((True, "gpa: "), (False, "")):
        settings = arguments.checked({"steps": 1, "task_prompts": wanted})
        for kind in ("vl_bart", "florence2"):
            assert hosts.find(kind).dataset(tasks.find("gqa"), [], None, None, settings, "train").prompt == prompt


@pytest.mark.slow
def test_they_are_trained_beside_the_others(own, tmp_path):
    more = dict(arms=["vl-adapter", "compacter"], adapter_rank=4, epochs=1, num_beams=1, task_prompts=False)
    assert vlpet.run(image_text.settings(own, tmp_path, **more)) == 0
    table = (tmp_path / "results.md").read_text()
    assert "| VL-Adapter (bottleneck 4) |" in table and "| Compacter (bottleneck 4) |" in table
