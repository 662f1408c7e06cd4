"""Encoder layers that run with their tail in the adapter's operation: equal to the host's own steps, or left alone."""

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers.models.bart.modeling_bart import BartEncoderLayer
from transformers.models.t5.modeling_t5 import T5LayerFF, T5LayerSelfAttention

from petx.tuners import describe
from petx.tuners.vlpet import fused
from tests.checks import Recorder
from tests.fixtures.tiny_hosts import HOSTS, WIDTH, batch, layers, logits, make_host, tuned

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
GRANULARITIES = ("large", "middleX", "middleY", "small", "none")


def fused_layers(model):
    return [module for module in model.modules() if isinstance(module, fused.FusedLayer)]


def separated(model):
    """A copy of ``model`` whose sites run alone."""
    model = copy.deepcopy(model)
    for layer in fused_layers(model):
        fused.separate(layer)
    return model


def no_dropout(kind):
    return dict(dropout=0.0) if "bart" in kind else dict(dropout_rate=0.0)


def gradients(model, kind):
    model(**batch(kind)).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def tails(model, kind):
    """(dropout, residual, norm) of every site's operator in one pass of the encoder."""
    with Recorder() as recorder:
        model(**batch(kind))
    calls = [args for func, args in recorder.calls if func._schema.name == "petx::gated_adapter_fwd"]
    names = [a.name for a in torch.ops.petx.gated_adapter_fwd.default._schema.arguments]
    found = [dict(zip(names, args, strict=False)) for args in calls]
    return [(call["dropout"], call["residual"], call["norm"]) for call in found if call["placement"] == 0]


@pytest.mark.parametrize("kind", HOSTS)
def test_every_encoder_layer_is_fused(kind):
    model = tuned(make_host(kind))
    wanted = 2 if "bart" in kind else 4  # T5's sub-layers are modules of their own
    assert len(fused_layers(model)) == wanted
    assert f"fused: {wanted} layers" in describe(model) and "not fused" not in describe(model)
    rate = 0.1
    assert tails(model.train(), kind) == [(rate, True, 1 if "bart" in kind else 0)] * 4
    assert tails(model.eval(), kind) == [(0.0, True, 1 if "bart" in kind else 0)] * 4


@pytest.mark.parametrize("kind", HOSTS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_equals_the_hosts_own_steps(kind, granularity):
    options = dict(granularity=granularity, mask_padding=granularity == "small")
    model = tuned(make_host(kind, **no_dropout(kind)).double(), **options).train()
    alone = separated(model)
    assert not fused_layers(alone) and tails(alone, kind) == [(0.0, False, 0)] * 4
    torch.testing.assert_close(logits(model, kind), logits(alone, kind), rtol=1e-9, atol=1e-9)
    found, wanted = gradients(model, kind), gradients(alone, kind)
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-8, atol=1e-9, msg=name)


@pytest.mark.parametrize("kind", ["bart", "t5"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_low_precision(kind, dtype):
    model = tuned(make_host(kind).to(dtype), spread=0.1)
    alone = separated(model)
    bound = 1e-4 if dtype == torch.float32 else 0.1
    assert (logits(model, kind) - logits(alone, kind)).abs().max() <= bound * logits(alone, kind).abs().max()


def test_dropout_is_the_hosts_own():
    """Where dropout hits, a T5 sub-layer returns its input; elsewhere the site's output is scaled up."""
    torch.manual_seed(0)
    p = 0.3
    model = tuned(make_host("t5", dropout_rate=p)).train()
    layer = model.base_model.model.encoder.block[0].layer[1]
    for module in layer.DenseReluDense.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x = torch.randn(64, 7, WIDTH)
    dropped = (layer(x) == x).float().mean().item()
    assert abs(dropped - p) < 0.02
    assert not torch.equal(layer(x), layer(x))
    layer.dropout.p = 0.0
    mean = layer(x)
    layer.dropout.p = p
    average = sum(layer(x) for _ in range(400)) / 400
    assert (average - mean).norm() < 0.1 * (mean - x).norm()


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_checkpointing_recomputes_the_same_dropout(kind):
    model = tuned(make_host(kind)).train()
    again = copy.deepcopy(model)
    again.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(3)
    wanted = gradients(model, kind)
    torch.manual_seed(3)
    found = gradients(again, kind)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], msg=name)


@pytest.mark.parametrize("kind", HOSTS)
def test_disabled_unloaded_copied(kind):
    host = make_host(kind)
    frozen = logits(host, kind)
    model = tuned(host)
    adapted = logits(model, kind)
    with model.disable_adapter():
        assert torch.equal(logits(model, kind), frozen)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert len(fused_layers(other)) == len(fused_layers(model))
        assert torch.equal(logits(other, kind), adapted)
    assert type(fused_layers(model)[0]).__name__ == type(fused_layers(model)[0]).host.__name__
    if not kind.startswith("vl_"):
        plain = model.unload()
        assert not fused_layers(plain)
        assert {BartEncoderLayer, T5LayerFF, T5LayerSelfAttention} & {type(module) for module in plain.modules()}


def test_merging():
    model = tuned(make_host("bart"), granularity="middleY", spread=0.0)
    for layer in layers(model):
        adapter = layer.vlpet_adapter["default"]
        torch.nn.init.zeros_(adapter.up.weight)
        if adapter.granularity == "middleY":
            torch.nn.init.uniform_(adapter.gate_scale, -0.5, 0.5)
    wanted = logits(model, "bart")
    model.merge_adapter()
    torch.testing.assert_close(logits(model, "bart"), wanted, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    assert torch.equal(logits(model, "bart"), wanted)


def test_several_adapters_and_their_norms():
    model = tuned(make_host("bart"))
    first = logits(model, "bart")
    from petx.tuners import VLPetConfig

    model.add_adapter("second", VLPetConfig(granularity="middleX", rank=8, decoder_rank=4))
    model.set_adapter("second")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "layer_norm.modules_to_save.second" in name:
                p.add_(0.5)
    torch.testing.assert_close(logits(model, "bart"), logits(separated(model), "bart"), rtol=1e-4, atol=1e-4)
    model.set_adapter("default")
    assert torch.equal(logits(model, "bart"), first)


@pytest.mark.parametrize("path", ["self_attn", "self_attn.out_proj", "fc2", "self_attn_layer_norm", "final_layer_norm"])
def test_hooks_see_what_they_see_in_the_host(path):
    """Also one that changes what goes through it."""
    model = tuned(make_host("bart"))
    seen = {}
    for name, one in {"fused": model, "alone": separated(model)}.items():
        layer = one.base_model.model.model.encoder.layers[0]

        def hook(module, args, output, name=name):
            seen[name] = output
            return (output[0] * 1.5, *output[1:]) if isinstance(output, tuple) else output * 1.5

        layer.get_submodule(path).register_forward_hook(hook)
        seen[f"{name} logits"] = logits(one, "bart")
    first = [seen[name][0] if isinstance(seen[name], tuple) else seen[name] for name in ("fused", "alone")]
    torch.testing.assert_close(*first, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen["fused logits"], seen["alone logits"], rtol=1e-4, atol=1e-4)


def test_a_hook_of_all_modules_sees_the_norms():
    model, seen = tuned(make_host("bart")), []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        logits(model, "bart")
    finally:
        handle.remove()
    norms = [layer.final_layer_norm for layer in fused_layers(model)]
    assert norms and all(fused.layer.running(norm) in seen for norm in norms)


def test_attention_weights_and_hidden_states_are_recorded():
    model = tuned(make_host("bart", attn_implementation="eager"))
    alone = separated(model)
    wanted = alone(**batch(), output_attentions=True, output_hidden_states=True)
    found = model(**batch(), output_attentions=True, output_hidden_states=True)
    for name in ("encoder_attentions", "encoder_hidden_states"):
        assert len(found[name]) == len(wanted[name]) > 1
        for one, other in zip(found[name], wanted[name], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert tails(model, "bart") == [(0.0, True, 1)] * 4  # the recorders stay and change nothing


class OwnLayer(BartEncoderLayer):
    def forward(self, hidden_states, attention_mask, **kwargs):
        return super().forward(hidden_states, attention_mask, **kwargs) + 1


class OwnDropout(nn.Dropout):
    def forward(self, x):
        return 2 * x


def changed(what):
    host = make_host("t5" if what == "dropout" else "bart")
    if what == "subclass":
        for layer in host.model.encoder.layers:
            layer.__class__ = OwnLayer
    elif what == "patched":
        for layer in host.model.encoder.layers:
            layer.forward = lambda *args, own=layer.forward, **kwargs: own(*args, **kwargs) - 1
    elif what == "norm":
        for layer in host.model.encoder.layers:
            layer.self_attn_layer_norm = nn.RMSNorm(WIDTH)
    elif what == "dropout":
        for block in host.encoder.block:
            block.layer[0].dropout = OwnDropout(0.1)
    return host


@pytest.mark.parametrize("what, words", [("subclass", "OwnLayer is a subclass"), ("patched", "was replaced")])
def test_unknown_layers_stay_as_they_are(what, words):
    host = changed(what)
    frozen = logits(host, "bart")
    model = tuned(host)
    assert not fused_layers(model)
    assert "not fused: 2 layers" in describe(model) and words in describe(model)
    with model.disable_adapter():
        assert torch.equal(logits(model, "bart"), frozen)


@pytest.mark.parametrize("what", ["norm", "dropout"])
def test_a_users_own_norm_or_dropout_is_called(what):
    host = changed(what)
    kind = "t5" if what == "dropout" else "bart"
    model = tuned(host)
    torch.testing.assert_close(logits(model, kind), logits(separated(model), kind), rtol=1e-4, atol=1e-4)
    assert (0.0, False, 0) in tails(model, kind)


def test_another_version_of_the_host(monkeypatch):
    kind = fused.fused_class(make_host("bart").model.encoder.layers[0])

    def forward(self, hidden_states, attention_mask, **kwargs):
        return self.final_layer_norm(self.fc1(hidden_states))

    forward.__module__ = kind.host.__module__
    monkeypatch.setattr(kind.host, "forward", forward)
    assert "differs in its use of" in fused.obstacle(make_host("bart").model.encoder.layers[0])
    monkeypatch.setattr(kind.host, "forward", lambda self, states: states)
    assert "was replaced by" in fused.obstacle(make_host("bart").model.encoder.layers[0])


def found_in(model, kind):
    """Logits, the encoder's hidden states and gradients."""
    out = model(**batch(kind), output_hidden_states=True)
    out.loss.backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    return [out.logits, *out.encoder_hidden_states, *grads]


@pytest.mark.parametrize("kind", HOSTS)
def test_under_autocast_the_residual_stream_is_float32(kind):
    """Fused, as without: each result in its dtype, and about as far from float32's as the unfused layers'."""
    model = tuned(make_host(kind, **no_dropout(kind)), spread=0.1).train()
    alone, exact = separated(model), found_in(copy.deepcopy(model), kind)
    with torch.autocast("cpu", torch.bfloat16):
        found, own = found_in(model, kind), found_in(alone, kind)
        assert tails(model, kind) == [(0.0, False, 1 if "bart" in kind else 0)] * 4  # the stream is given apart
        assert "not fused" not in describe(model)
    assert [one.dtype for one in found] == [other.dtype for other in own]

    def error(values):
        return sum(
            (one.float() - other).norm() / other.norm().clamp(min=1e-6)
            for one, other in zip(values, exact, strict=True)
        )

    assert error(found) <= 1.25 * error(own)


def test_under_autocast_an_adapter_in_bfloat16_is_fused():
    """Its dtype is not that of the stream, which the host's weights decide."""
    model = tuned(make_host("bart"))
    for name, parameter in model.named_parameters():
        if ".vlpet_adapter." in name:
            parameter.data = parameter.data.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert [norm for *_, norm in tails(model, "bart")] == [1] * 4
        assert "not fused" not in describe(model)


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_under_autocast_a_bfloat16_stream_is_the_hosts_own(kind):
    """There dtypes change on the way: bit for bit the unfused layers', and `describe` says so."""
    model = tuned(make_host(kind, **no_dropout(kind)).bfloat16(), spread=0.1).train()
    with torch.autocast("cpu", torch.bfloat16):
        found, own = found_in(model, kind), found_in(separated(model), kind)
        told = describe(model)
    for one, other in zip(found, own, strict=True):
        assert one is other is None or (one.dtype == other.dtype and torch.equal(one, other))
    assert "not fused" in told and "changes its dtype on the way" in told
    assert "not fused" not in describe(model)


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_keeps_less_for_the_backward(kind):
    def saved(model):
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        encoder = model.base_model.model.get_encoder()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = encoder(inputs_embeds=torch.randn(4, 64, WIDTH, requires_grad=True)).last_hidden_state
        assert result.requires_grad
        return sum(sizes.values())

    model, values = tuned(make_host(kind)).train(), 4 * 64 * WIDTH * 4
    fewer = {"bart": 2, "t5": 1}[kind]  # a mask of dropout a site, and what the norm reads
    assert saved(model) + 4 * (fewer * values - 64) <= saved(separated(model))


@pytest.mark.slow  # the compiler's seconds
@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_compiles_in_one_graph(kind):
    model = tuned(make_host(kind))
    encoder = model.base_model.model.get_encoder()
    x = torch.randn(2, 9, WIDTH)
    wanted = encoder(inputs_embeds=x).last_hidden_state
    torch._dynamo.reset()
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(inputs_embeds=x).last_hidden_state, wanted, rtol=1e-4, atol=1e-5)
