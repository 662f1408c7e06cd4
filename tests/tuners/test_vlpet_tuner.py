"""The VL-PET tuner: where it goes, what it computes there, how it starts, and how it tells."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from peft.utils import ModulesToSaveWrapper
from transformers import PegasusConfig, PegasusForConditionalGeneration

from petx import reference
from petx.tuners import VLPetConfig, describe, parameter_counts
from tests.fixtures.tiny_hosts import BART, HOSTS, WIDTH, batch, layers, logits, make_host, tuned

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
GRANULARITIES = ("large", "middleX", "middleY", "small", "none")
ENCODER = {
    "bart": ["model.encoder.layers.{}.self_attn.out_proj", "model.encoder.layers.{}.fc2"],
    "t5": ["encoder.block.{}.layer.0.SelfAttention.o", "encoder.block.{}.layer.1.DenseReluDense.wo"],
}
VALUE = {"bart": "model.decoder.layers.{}.encoder_attn.v_proj", "t5": "decoder.block.{}.layer.1.EncDecAttention.v"}
NORMS = {
    "bart": ["model.encoder.layers.{}.self_attn_layer_norm", "model.encoder.layers.{}.final_layer_norm"],
    "t5": ["encoder.block.{}.layer.0.layer_norm", "encoder.block.{}.layer.1.layer_norm"],
}
LAST_NORM = {"bart": "model.encoder.layernorm_embedding", "t5": "encoder.final_layer_norm"}


def paths(patterns):
    return {pattern.format(i) for pattern in patterns for i in range(2)}


# ---- where it goes ----


@pytest.mark.parametrize("kind", HOSTS)
def test_insertion_points_are_the_released_codes(kind):
    family = kind.removeprefix("vl_")
    model = tuned(kind)
    found = {place.path: place.kind for place in model.base_model.adapted()}
    for side, wanted in (("encoder", paths(ENCODER[family])), ("decoder", paths([VALUE[family]]))):
        assert {path for path, what in found.items() if what.startswith(side)} == wanted
    assert {path for path, what in found.items() if what == "trained norm"} == paths(NORMS[family]) | {
        LAST_NORM[family]
    }
    visual = {path for path, what in found.items() if what == "trained visual embedding"}
    assert visual == ({"visual_embedding"} if kind.startswith("vl_") else set())


@pytest.mark.parametrize("kind", HOSTS)
def test_only_what_was_adapted_is_trained(kind):
    model = tuned(kind)
    prefix = "base_model.model."
    trained = {name.removeprefix(prefix) for name, p in model.named_parameters() if p.requires_grad}
    places = [place.path for place in model.base_model.adapted()]
    assert trained == {
        name.removeprefix(prefix)
        for name, _ in model.named_parameters()
        if any(re.match(rf"{re.escape(prefix + path)}\.(vlpet_adapter|modules_to_save)\.", name) for path in places)
    }
    model.train()
    model(**batch(kind)).loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_norms_and_visual_embedding_are_switches_and_the_users_modules_stay():
    switches = dict(train_encoder_norms=False, train_decoder_norms=True, train_visual_embedding=False)
    model = tuned("vl_bart", **switches, modules_to_save=["encoder.embed_positions"])
    wrapped = {
        name for name, module in model.base_model.model.named_modules() if isinstance(module, ModulesToSaveWrapper)
    }
    names = ["self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"]
    decoder = paths([f"model.decoder.layers.{{}}.{name}" for name in names])
    assert wrapped == decoder | {"model.decoder.layernorm_embedding", "model.encoder.embed_positions"}


def test_other_models_are_adapted_where_the_configuration_says():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer, self.memory = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(3))

        def forward(self, x, memory):
            return x + self.outer(torch.relu(self.inner(x))) + self.memory(memory)

    class Host(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.steps = torch.nn.ModuleList([Layer(), Layer()])

        def forward(self, x, memory):
            for step in self.steps:
                x = step(x, memory)
            return x

    torch.manual_seed(0)
    host = Host()
    outer = [dict(name="output", output=r"(steps\.\d+)\.outer", input=r"\1.inner")]
    values = [dict(name="memory", output=r"steps\.1\.memory")]
    options = dict(preset="bart", encoder_sites=outer, decoder_sites=values, train_encoder_norms=False)
    model = tuned(host, **options)
    assert [place.path for place in model.base_model.adapted()] == ["steps.0.outer", "steps.1.outer", "steps.1.memory"]
    x, memory = torch.randn(2, 3, WIDTH), torch.randn(2, 3, WIDTH)
    first, second = model.base_model.model.steps
    adapter = second.memory.vlpet_adapter.default
    value = second.memory.base_layer(memory) + adapter.up(F.gelu(adapter.down(memory), approximate="tanh"))
    wanted = x
    for step, memory_term in ((first, first.memory(memory)), (second, value)):
        h = step.outer.base_layer(torch.relu(step.inner(wanted)))
        wanted = wanted + step.outer.vlpet_adapter.default(h, wanted) + memory_term
    torch.testing.assert_close(model(x, memory), wanted)


@pytest.mark.parametrize("norms_first", [True, False])
def test_taps_and_trained_norms_share_a_module(norms_first):
    """A pre-norm model's X enters a norm that is trained as well; adapters with and without norms come in any order."""
    host = PegasusForConditionalGeneration(PegasusConfig(**BART | dict(init_std=0.1, dropout=0.0)))
    layer = r"(model\.encoder\.layers\.\d+)"
    sites = dict(
        preset="bart",
        encoder_sites=[
            dict(output=layer + r"\.self_attn\.out_proj", input=r"\1.self_attn_layer_norm"),
            dict(output=layer + r"\.fc2", input=r"\1.final_layer_norm"),
        ],
        decoder_sites=[],
    )
    model = tuned(host.eval(), train_encoder_norms=norms_first, **sites)
    first = logits(model, "bart")
    model.add_adapter("second", VLPetConfig(train_encoder_norms=not norms_first, **sites))
    assert torch.equal(logits(model, "bart"), first) and len(layers(model)) == 4
    site = layers(model)[1]
    x, inner = torch.randn(1, 3, WIDTH), torch.randn(1, 3, 48)
    model.base_model.model.model.encoder.layers[0].final_layer_norm(x)
    assert site._x is x
    torch.testing.assert_close(site(inner), site.vlpet_adapter.default(site.base_layer(inner), x))
    assert sum(len(module._forward_pre_hooks) for module in model.modules()) == 4 + 1  # a tap each, the stack's lock


# ---- what it computes ----


def site_by_hand(adapter, h, x):
    """Y = s·G ⊙ (H + up(gelu(down(H)))), from the layers' weights."""

    def linear(layer, value):
        return value @ layer.weight.T + layer.bias

    def gelu(z):
        return 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    s = h + linear(adapter.up, gelu(linear(adapter.down, h)))
    if adapter.granularity == "large":
        gate = torch.sigmoid(linear(adapter.gate, gelu(linear(adapter.gate_down, x))))
    elif adapter.granularity == "middleX":
        gate = torch.sigmoid(linear(adapter.gate, x + s))
    elif adapter.granularity == "small":
        gate = torch.sigmoid(linear(adapter.gate, torch.cat([x, s], -1))).mean(1, keepdim=True)
    else:
        gate = 1 + adapter.gate_scale if adapter.granularity == "middleY" else 1
    return adapter.scale * gate * s


def attention_by_hand(q, k, v, heads, scaling, bias):
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    weights = (scaling * q @ k.transpose(2, 3) + bias).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_bart_encoder_layer_equals_the_formula(granularity):
    model = tuned("bart", granularity=granularity)
    layer = model.base_model.model.model.encoder.layers[1]
    x, mask = torch.randn(2, 6, WIDTH), torch.zeros(2, 1, 6, 6)
    attention = layer.self_attn
    h = attention_by_hand(attention.q_proj(x), attention.k_proj(x), attention.v_proj(x), 2, 16**-0.5, mask)
    h = h @ attention.out_proj.weight.T + attention.out_proj.bias
    after = layer.self_attn_layer_norm(x + site_by_hand(attention.out_proj.vlpet_adapter.default, h, x))
    h = F.gelu(layer.fc1(after)) @ layer.fc2.weight.T + layer.fc2.bias
    wanted = layer.final_layer_norm(after + site_by_hand(layer.fc2.vlpet_adapter.default, h, after))
    torch.testing.assert_close(layer(x, None), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_t5_encoder_layer_equals_the_formula_and_reads_the_unnormalised_stream(granularity):
    model = tuned("t5", granularity=granularity)
    block = model.base_model.model.encoder.block[1]
    x, bias = 3 * torch.randn(2, 6, WIDTH), torch.randn(1, 2, 6, 6)

    def rms(norm, value):
        return norm.weight * value * (value.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()

    attention, ffn = block.layer[0].SelfAttention, block.layer[1].DenseReluDense
    n = rms(block.layer[0].layer_norm, x)
    h = attention_by_hand(attention.q(n), attention.k(n), attention.v(n), 2, 1.0, bias) @ attention.o.weight.T
    after = x + site_by_hand(attention.o.vlpet_adapter.default, h, x)
    h = torch.relu(ffn.wi(rms(block.layer[1].layer_norm, after))) @ ffn.wo.weight.T
    wanted = after + site_by_hand(ffn.wo.vlpet_adapter.default, h, after)
    torch.testing.assert_close(block(x, position_bias=bias)[0], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_decoder_values_are_the_projection_plus_a_parallel_adapter_of_the_encoder_output(kind):
    model = tuned(kind)
    layer = model.base_model.model.get_submodule(VALUE[kind].format(0))
    e, adapter = torch.randn(2, 6, WIDTH), layer.vlpet_adapter.default
    z = F.gelu(adapter.down(e), approximate="tanh")
    torch.testing.assert_close(layer(e), layer.base_layer(e) + adapter.up(z))
    assert adapter.heads == 1 and adapter.granularity == "none" and adapter.scale == 1.0


@pytest.mark.parametrize("kind", HOSTS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_small_gate_without_padding_does_not_depend_on_how_far_a_batch_is_padded(kind, attention, side):
    granularities = (
        dict(granularity="small") if side == "encoder" else dict(granularity="none", decoder_granularity="small")
    )
    inputs = batch(kind)
    alone = {name: value[1:] for name, value in inputs.items()}
    alone |= {name: alone[name][:, :4] for name in ("input_ids", "attention_mask")}
    for mask_padding in (True, False):
        host = make_host(kind, attn_implementation=attention)
        model = tuned(host, **granularities, mask_padding=mask_padding)
        together, single = model(**inputs).logits[1:], model(**alone).logits
        assert torch.allclose(together, single, atol=1e-5) == mask_padding


def test_parallel_placement_and_the_papers_variants_reach_the_sites():
    options = dict(placement="parallel", gate_input="original", middle_y="sigmoid", activation="gelu", use_bias=False)
    model = tuned("bart", granularity="middleX", scale=0.5, **options)
    site = model.base_model.model.model.encoder.layers[0].fc2
    adapter, x, inner = site.vlpet_adapter.default, torch.randn(2, 3, WIDTH), torch.randn(2, 3, 48)
    site._receive_input(site, (x,), {})
    h = site.base_layer(inner)
    wanted = reference.gated_adapter(
        h,
        x,
        adapter.down.weight,
        None,
        adapter.up.weight,
        None,
        gate_weight=adapter.gate.weight,
        granularity="middleX",
        activation="gelu",
        gate_input="original",
        placement="parallel",
        scale=0.5,
    )
    torch.testing.assert_close(site(inner), wanted)


# ---- how it starts ----


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_t5_starts_with_s_times_g_of_the_frozen_output(granularity):
    """methods: the site's output is X + 0.15 H, or X + 0.3 H for middleY; the decoder is unchanged."""
    gain = {"middleY": 0.3, "none": 0.3}.get(granularity, 0.15)
    model = get_peft_model(make_host("t5"), VLPetConfig(granularity=granularity)).eval()
    layer = model.base_model.model.encoder.block[0].layer[1]
    x = torch.randn(2, 5, WIDTH)
    with model.disable_adapter():
        h = layer(x) - x
    torch.testing.assert_close(layer(x), x + gain * h)
    value = model.base_model.model.decoder.block[0].layer[1].EncDecAttention.v
    assert torch.equal(value(x), value.base_layer(x))
    down = layer.DenseReluDense.wo.vlpet_adapter.default.down
    assert down.weight.abs().max() <= WIDTH**-0.5 and down.weight.std() > 0.4 * WIDTH**-0.5 and down.bias.any()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_bart_starts_at_half_of_the_frozen_output(granularity):
    """methods: no zero initialisation, so G is about 0.5 (middleY about 1) and ΔH of second order."""
    model = get_peft_model(make_host("bart"), VLPetConfig(granularity=granularity)).eval()
    site = model.base_model.model.model.encoder.layers[0].fc2
    adapter, x, h = site.vlpet_adapter.default, 0.5 * torch.randn(2, 5, WIDTH), 0.5 * torch.randn(2, 5, WIDTH)
    gain = 1.0 if granularity in ("middleY", "none") else 0.5
    torch.testing.assert_close(adapter(h, x), gain * h, rtol=0.1, atol=0.1)
    for layer in (adapter.down, adapter.up):
        assert 0.018 < layer.weight.std() < 0.022 and not layer.bias.any()


def test_presets_and_overrides():
    for kind, wanted in {"bart": (96, 4, 1.0, "normal", False), "t5": (192, 4, 0.3, "uniform", True)}.items():
        config = VLPetConfig()
        get_peft_model(make_host(kind), config)
        assert (config.rank, config.heads, config.scale, config.init, config.zero_init_up) == wanted
        assert config.gate_rank == config.rank and config.decoder_rank == 96 and config.preset == kind
    config = VLPetConfig(rank=16, heads=2, scale=0.7, zero_init_gate=False, decoder_rank=8)
    get_peft_model(make_host("t5"), config)
    assert (config.rank, config.gate_rank, config.heads, config.scale, config.decoder_rank) == (16, 16, 2, 0.7, 8)
    assert config.zero_init_up and not config.zero_init_gate


@pytest.mark.parametrize(
    "options", [dict(), dict(design="down-up-pair"), dict(modification="phm", heads=1), dict(decoder_value=False)]
)
def test_counts_are_those_of_the_modules_made(options):
    model = tuned("vl_bart", **options)
    counts = parameter_counts(model)
    assert counts["trainable"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    host = sum(p.numel() for p in make_host("vl_bart").parameters())
    new = sum(p.numel() for name, p in model.named_parameters() if ".vlpet_adapter." in name)
    assert counts["total"] == host + new and counts["encoder_gate"] > 0
    assert (counts["decoder_value"] == 0) == (options == dict(decoder_value=False))


def test_description_says_what_was_adapted():
    text = describe(tuned("vl_t5"))
    assert "2 x encoder attention output: granularity large, rank 8, 4 heads (down), gate rank 8, scale 0.3" in text
    assert "2 x decoder cross-attention value: no gate, rank 4" in text and "5 x trained norm" in text
    counts = parameter_counts(tuned("vl_t5"))
    assert f"trainable {counts['trainable']:,} of {counts['total']:,} parameters" in text
    place = tuned("vl_t5").base_model.adapted()[0]
    assert (place.granularity, place.rank, place.heads, place.design, place.scale) == ("large", 8, 4, "down", 0.3)
