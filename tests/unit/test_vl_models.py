"""VL-BART and VL-T5: the visual embedding, how it joins the text, generating, saving, and what is refused."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForSeq2SeqLM

from petx.errors import UserError
from petx.models import VisualEmbedding
from petx.models.vl_t5 import TextBiasAttention
from tests.fixtures.tiny_hosts import HOSTS, VISUAL_WIDTH, VOCABULARY, WIDTH, batch, make_host

VISUAL = ["vl_bart", "vl_t5"]


def encoder_layers(model):
    encoder = model.get_encoder()
    return encoder.layers if hasattr(encoder, "layers") else encoder.block


def recorded(module, run):
    """Inputs of ``module`` during ``run()``."""
    seen = []
    hook = module.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    with torch.no_grad():
        run()
    hook.remove()
    return seen


# ---- the visual embedding ----


@pytest.mark.parametrize("kind", VISUAL)
@pytest.mark.parametrize("boxes", [False, True])
def test_visual_embedding_equals_the_formula(kind, boxes):
    model = make_host(kind)
    visual, table = model.visual_embedding, model.get_input_embeddings().weight
    features, image_ids = torch.randn(2, 6, VISUAL_WIDTH), torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1]])
    corners = torch.rand(2, 6, 4) if boxes else None
    x1, y1, x2, y2 = (corners if boxes else torch.zeros(2, 6, 4)).unbind(-1)
    five = torch.stack([x1, y1, x2, y2, (x2 - x1) * (y2 - y1)], dim=-1)

    def norm(layer, value):
        if kind == "vl_bart":
            return F.layer_norm(value, (WIDTH,), layer.weight, layer.bias, 1e-5)
        return F.rms_norm(value, (WIDTH,), layer.weight, 1e-6)

    wanted = norm(visual.feature_norm, features @ visual.feature.weight.T + visual.feature.bias)
    wanted = wanted + norm(visual.position_norm, five @ visual.position.weight.T + visual.position.bias)
    for sample, objects in enumerate(([0, 1, 2, 0, 1, 2], [0, 0, 1, 1, 2, 2])):  # counted within an image
        for token, i in enumerate(objects):
            wanted[sample, token] += visual.image_order.weight[image_ids[sample, token]] + table[VOCABULARY - 1 - i]
    torch.testing.assert_close(visual(features, table, corners, image_ids), wanted)
    one_image = visual(features, table, corners)
    assert torch.equal(one_image, visual(features, table, corners, torch.zeros_like(image_ids)))


def test_visual_embedding_registers_its_own_parameters_only():
    counts = {
        name: sum(p.numel() for p in make_host(name).visual_embedding.parameters()) for name in ("vl_bart", "vl_t5")
    }
    linears = (VISUAL_WIDTH + 1) * WIDTH + 6 * WIDTH
    assert counts == {"vl_bart": linears + 4 * WIDTH + 2 * WIDTH, "vl_t5": linears + 2 * WIDTH + 2 * WIDTH}


@pytest.mark.parametrize("kind", VISUAL)
def test_every_parameter_of_the_visual_embedding_takes_part(kind):
    model = make_host(kind)
    nn.init.normal_(model.visual_embedding.position.bias)
    model(**batch(kind)).loss.backward()
    gradients = {name: p.grad for name, p in model.visual_embedding.named_parameters()}
    assert all(grad is not None for grad in gradients.values())
    assert {name for name, grad in gradients.items() if not grad.any()} == {"position.weight"}  # the boxes are zeros


@pytest.mark.parametrize("kind", VISUAL)
def test_initialisation_is_the_papers(kind):
    torch.manual_seed(0)
    options = dict(init_std=0.02) if kind == "vl_bart" else {}
    visual = HOSTS[kind](visual_width=400, max_images=50, **options).visual_embedding
    spread = {name: p.std().item() for name, p in visual.named_parameters() if "norm" not in name}
    t5 = {"feature.weight": (400 * 3) ** -0.5, "position.weight": 15**-0.5, "image_order.weight": 1.0}
    for name, wanted in t5.items():
        assert spread[name] == pytest.approx(0.02 if kind == "vl_bart" else wanted, rel=0.15)
    assert (spread["feature.bias"] == 0) == (kind == "vl_bart") and bool(visual.feature.bias.any()) == (kind == "vl_t5")
    assert all((p == float(name.endswith("weight"))).all() for name, p in visual.named_parameters() if "norm" in name)


# ---- joining text and vision ----


def test_bart_normalises_the_text_only():
    model, inputs = make_host("vl_bart"), batch("vl_bart")
    encoder = model.model.encoder
    ((hidden, mask), _), *_ = recorded(encoder.layers[0], lambda: model(**inputs))
    text = encoder.embed_tokens(inputs["input_ids"]) + encoder.embed_positions.weight[2:9]
    text = F.layer_norm(text, (WIDTH,), encoder.layernorm_embedding.weight, encoder.layernorm_embedding.bias)
    vision = model.visual_embedding(inputs["visual_features"], encoder.embed_tokens.weight)
    torch.testing.assert_close(hidden, torch.cat([text, vision], dim=1))
    assert torch.equal(mask[:, 0, 0], torch.cat([inputs["attention_mask"], torch.ones(2, 5)], dim=1).bool())


def test_bart_drops_text_and_vision_alike():
    model = make_host("vl_bart", dropout=0.5).train()
    ((hidden, _), _), *_ = recorded(model.model.encoder.layers[0], lambda: model(**batch("vl_bart")))
    for part in (hidden[:, :7], hidden[:, 7:]):
        assert 0.3 < (part == 0).float().mean() < 0.7


def test_t5_position_bias_is_among_text_only():
    model, inputs = make_host("vl_t5"), batch("vl_t5")
    first, second = (block.layer[0].SelfAttention for block in model.encoder.block)
    (_, seen), *_ = recorded(second, lambda: model(**inputs))
    bias = seen["position_bias"]
    assert bias.shape == (1, 2, 12, 12) and not bias[:, :, 7:].any() and not bias[:, :, :, 7:].any()
    torch.testing.assert_close(bias[:, :, :7, :7], first.compute_bias(7, 7))
    ((hidden, mask, *_), _), *_ = recorded(model.encoder.block[0], lambda: model(**inputs))
    table = model.shared.weight
    vision = model.visual_embedding(inputs["visual_features"], table)
    torch.testing.assert_close(hidden, torch.cat([table[inputs["input_ids"]], vision], dim=1))
    assert torch.equal(mask[:, 0, 0], torch.cat([inputs["attention_mask"], torch.ones(2, 5)], dim=1).bool())


@pytest.mark.parametrize("kind", VISUAL)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_text_alone_is_the_plain_model(kind, attention):
    model = make_host(kind, attn_implementation=attention)
    plain = make_host(kind.removeprefix("vl_"), attn_implementation=attention)
    missing = plain.load_state_dict(model.state_dict(), strict=False)
    assert not missing.missing_keys and all(key.startswith("visual_embedding.") for key in missing.unexpected_keys)
    inputs = batch(kind.removeprefix("vl_"))
    flags = dict(output_hidden_states=True, output_attentions=attention == "eager")
    found, wanted = model(**inputs, **flags), plain(**inputs, **flags)
    torch.testing.assert_close(found.logits, wanted.logits)
    assert len(found.encoder_hidden_states) == len(wanted.encoder_hidden_states) == 3
    options = dict(max_new_tokens=4, num_beams=2)
    ids = inputs["input_ids"]
    assert torch.equal(model.generate(ids, **options), plain.generate(ids, **options))


@pytest.mark.parametrize("kind", VISUAL)
def test_masked_tokens_have_no_influence_and_others_do(kind):
    model, inputs = make_host(kind), batch(kind)
    inputs["visual_attention_mask"] = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with torch.no_grad():
        before = model(**inputs).logits
        inputs["visual_features"][1, 3:] += 1
        assert torch.equal(model(**inputs).logits, before)
        inputs["visual_features"][1, 2] += 1
        after = model(**inputs).logits
    assert torch.equal(after[0], before[0]) and not torch.allclose(after[1], before[1])


@pytest.mark.parametrize("kind", VISUAL)
def test_no_mask_means_that_everything_counts(kind):
    model, inputs = make_host(kind), batch(kind, padded=False)
    ones = dict(attention_mask=torch.ones(2, 7), visual_attention_mask=torch.ones(2, 5))
    torch.testing.assert_close(model(**inputs).logits, model(**inputs, **ones).logits)


@pytest.mark.parametrize("kind", VISUAL)
def test_outputs_cover_text_and_vision(kind):
    model = make_host(kind, attn_implementation="eager")
    out = model(**batch(kind), output_hidden_states=True, output_attentions=True)
    assert [tuple(h.shape) for h in out.encoder_hidden_states] == [(2, 12, WIDTH)] * 3
    assert [tuple(a.shape) for a in out.encoder_attentions] == [(2, 2, 12, 12)] * 2
    assert [tuple(a.shape) for a in out.cross_attentions] == [(2, 2, 4, 12)] * 2
    assert out.encoder_last_hidden_state.shape == (2, 12, WIDTH)
    assert not out.cross_attentions[0][1, :, :, 4:7].any()  # text padding
    as_tuple = model(**batch(kind), return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], out.loss)


# ---- generating ----


@pytest.mark.parametrize("kind", VISUAL)
def test_greedy_generation_equals_forward_passes(kind):
    model, inputs = make_host(kind), batch(kind)
    inputs.pop("labels")
    found = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, forced_eos_token_id=None)
    tokens = torch.full((2, 1), model.config.decoder_start_token_id)
    for _ in range(5):
        with torch.no_grad():
            scores = model(**inputs, decoder_input_ids=tokens).logits[:, -1]
        scores[:, model.config.eos_token_id] = -torch.inf
        tokens = torch.cat([tokens, scores.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(found, tokens)


@pytest.mark.parametrize("kind", VISUAL)
def test_beams_see_the_image_and_the_encoder_runs_once(kind):
    model, inputs = make_host(kind), batch(kind)
    options = dict(max_new_tokens=5, min_new_tokens=5, num_beams=3, return_dict_in_generate=True, output_scores=True)
    runs = recorded(encoder_layers(model)[0], lambda: model.generate(**inputs, **options))
    assert len(runs) == 1 and runs[0][0][0].shape[0] == 2  # labels are ignored, beams share the encoder's pass
    first = model.generate(**inputs, **options)
    again = model.generate(inputs.pop("input_ids"), **inputs, **options)
    assert torch.equal(first.sequences, again.sequences)
    inputs["visual_features"] = -inputs["visual_features"]
    other = model.generate(batch(kind)["input_ids"], **inputs, **options)
    assert not torch.allclose(first.sequences_scores, other.sequences_scores)


# ---- saving, loading, compiling ----


@pytest.mark.parametrize("kind", VISUAL)
def test_save_and_load(kind, tmp_path):
    model = make_host(kind)
    model.save_pretrained(tmp_path)
    for loaded in (type(model).from_pretrained(tmp_path), AutoModelForSeq2SeqLM.from_pretrained(tmp_path)):
        assert type(loaded) is type(model) and loaded.config.visual_width == VISUAL_WIDTH
        state = loaded.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        assert torch.equal(loaded.eval()(**batch(kind)).logits, model(**batch(kind)).logits)


@pytest.mark.parametrize("kind", VISUAL)
def test_a_plain_checkpoint_gets_a_fresh_visual_embedding(kind, tmp_path):
    plain = make_host(kind.removeprefix("vl_"))
    plain.save_pretrained(tmp_path)
    loaded = type(make_host(kind)).from_pretrained(tmp_path, visual_width=300)
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in plain.state_dict().items())
    wanted = 0.2 if kind == "vl_bart" else 900**-0.5  # the host's init_std, or torch's default
    assert loaded.visual_embedding.feature.weight.std().item() == pytest.approx(wanted, rel=0.1)
    assert loaded.get_encoder().embed_tokens.weight is loaded.get_input_embeddings().weight


@pytest.mark.parametrize("kind", VISUAL)
def test_trainer_finds_inputs_and_labels(kind):
    names = list(inspect.signature(HOSTS[kind]().forward).parameters)
    wanted = ["input_ids", "attention_mask", "visual_features", "boxes", "image_ids", "visual_attention_mask", "labels"]
    assert [name for name in names if name in wanted] == wanted


@pytest.mark.slow
@pytest.mark.parametrize("kind", VISUAL)
def test_encoding_text_and_vision_compiles_into_one_graph(kind):
    model, inputs = make_host(kind), batch(kind)
    inputs.pop("labels")

    def encode(**inputs):
        return model._encode(**inputs)[0].last_hidden_state

    torch.testing.assert_close(torch.compile(encode, fullgraph=True, backend="aot_eager")(**inputs), encode(**inputs))


def test_bfloat16_model_takes_float32_features():
    model = make_host("vl_t5").bfloat16()
    out = model(**batch("vl_t5"))
    assert out.logits.dtype == torch.bfloat16 and out.loss.isfinite()


# ---- what is refused ----


@pytest.mark.parametrize("kind", VISUAL)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(visual_features=torch.randn(2, 5, 21)),
            r"visual_features must be floating \[batch, tokens, 20\].*2, 5, 21",
        ),
        (dict(visual_features=torch.randn(2, 20)), r"visual_features must be floating .*got torch\.float32 \[2, 20\]"),
        (dict(visual_features=torch.ones(2, 5, 20).long()), "visual_features must be floating .*got torch.int64"),
        (dict(visual_features=torch.randn(3, 5, 20)), r"must have input_ids' batch size 2, got \[3, 5, 20\]"),
        (dict(visual_features=torch.randn(2, 61, 20)), "has 61 tokens, but the object embeddings .* vocabulary of 60"),
        (dict(boxes=torch.zeros(2, 4, 4)), r"boxes must be \[2, 5, 4\], got \[2, 4, 4\]"),
        (dict(image_ids=torch.zeros(5)), r"image_ids must be \[2, 5\], got \[5\]"),
        (dict(attention_mask=torch.ones(2, 12)), r"attention_mask must be \[2, 7\], got \[2, 12\]"),
        (dict(visual_attention_mask=torch.ones(2, 4)), r"visual_attention_mask must be \[2, 5\], got \[2, 4\]"),
        (dict(input_ids=None), "visual_features need input_ids beside them"),
    ],
)
def test_inputs_that_do_not_fit_are_named(kind, change, message):
    model = make_host(kind)
    inputs = batch(kind) | change
    with pytest.raises(UserError, match=message):
        model(**inputs)
    inputs.pop("labels")
    with pytest.raises(UserError, match=message):
        model.generate(**inputs, max_new_tokens=2)


@pytest.mark.parametrize("ids", [[0, 2], [-1, 0]])
def test_image_ids_beyond_the_table_are_refused(ids):
    visual = VisualEmbedding(4, 8, max_images=2)
    message = f"image_ids must be below max_images=2, got {min(ids)} to {max(ids)}"
    with pytest.raises(UserError, match=message):
        visual(torch.randn(1, 2, 4), torch.randn(9, 8), image_ids=torch.tensor([ids]))


def test_text_bias_attention_without_vision_is_t5s():
    model = make_host("vl_t5")
    attention = model.encoder.block[0].layer[0].SelfAttention
    assert isinstance(attention, TextBiasAttention) and isinstance(model.shared, nn.Embedding)
    assert not isinstance(model.encoder.block[1].layer[0].SelfAttention, TextBiasAttention)
    assert not isinstance(model.decoder.block[0].layer[0].SelfAttention, TextBiasAttention)
