"""The PETAL tuner: what it computes, where it goes, what it trains, how often it computes it."""

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

import petx.functional
from petx.errors import UserError
from petx.tuners import PetalConfig, VLPetConfig, adapted, describe, parameter_counts
from petx.tuners.petal import layer
from tests.fixtures import petal_literal
from tests.fixtures.tiny_hosts import make_host
from tests.fixtures.tiny_vlms import (
    IMAGE_WIDTH,
    QUERIES,
    VLMS,
    make_vlm,
    petal,
    petal_layers,
    randomise,
    vlm_batch,
    vlm_logits,
)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
QFORMERS = [kind for kind in VLMS if kind != "llava"]


def qformer_inputs(kind, host):
    draw = torch.Generator().manual_seed(3)
    inputs = {
        "query_embeds": host.query_tokens.expand(2, -1, -1),
        "encoder_hidden_states": torch.randn(2, 5, IMAGE_WIDTH, generator=draw),
    }
    if kind.startswith("instructblip"):
        batch = vlm_batch(kind)
        mask = batch["qformer_attention_mask"]
        inputs["input_ids"] = batch["qformer_input_ids"]
        inputs["attention_mask"] = torch.cat([mask.new_ones(2, QUERIES), mask], dim=1)
    return inputs


# ---- what it computes ----


@pytest.mark.parametrize("kind", ["instructblip-t5", "blip2-t5"])
@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(core="diagonal", context="batch_mean", cross_query_transform=True),
        dict(share_image_core=True, context="per_sample", expert_alpha=0.9, expert_beta=0.2),
        dict(experts=0, query_transform=False, cross_query_transform=True),
        dict(image_rank=2),
        dict(image_rank=7, core="diagonal"),
    ],
)
def test_qformer_is_the_one_written_out(kind, options):
    model = petal(kind, **options)
    host = make_vlm(kind)
    inputs = qformer_inputs(kind, host)
    with torch.no_grad():
        found = model.base_model.model.qformer(**inputs).last_hidden_state
        wanted = petal_literal.qformer(
            host,
            get_peft_model_state_dict(model),
            inputs["query_embeds"],
            inputs["encoder_hidden_states"],
            inputs.get("input_ids"),
            inputs.get("attention_mask"),
            context=options.get("context", "off"),
            alpha=options.get("expert_alpha", 0.6),
            beta=options.get("expert_beta", 0.4),
        )
    keep = inputs.get("attention_mask", torch.ones(2, QUERIES)).bool()
    torch.testing.assert_close(found[keep], wanted[keep], rtol=1e-5, atol=2e-5)


def test_experts_may_read_the_text_alone():
    model, host = petal("instructblip-t5", expert_scope="text"), make_vlm("instructblip-t5")
    inputs = qformer_inputs("instructblip-t5", host)
    saved = get_peft_model_state_dict(model)
    arguments = [inputs[name] for name in ("query_embeds", "encoder_hidden_states", "input_ids", "attention_mask")]
    with torch.no_grad():
        found = model.base_model.model.qformer(**inputs).last_hidden_state[:, :QUERIES]
        wanted = petal_literal.qformer(host, saved, *arguments, text_only=True)[:, :QUERIES]
        other = petal_literal.qformer(host, saved, *arguments)[:, :QUERIES]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-5)
    assert not torch.allclose(found, other, atol=1e-3)


def test_sample_gate_reads_the_instruction_without_its_padding():
    model = petal("instructblip-t5", expert_gate="sample")
    host = model.base_model.model
    inputs = qformer_inputs("instructblip-t5", host)
    shown = []
    host.qformer.embeddings.register_forward_hook(lambda module, args, output: shown.append(output))
    with torch.no_grad():
        host.qformer(**inputs)
        plain = make_vlm("instructblip-t5").qformer.embeddings(inputs["input_ids"], query_embeds=inputs["query_embeds"])
    experts = model.base_model.petal_shared["default"].experts
    pool = inputs["attention_mask"].bool() & (torch.arange(plain.shape[1]) >= QUERIES)
    wanted = [experts(plain[i : i + 1, :], pool_mask=pool[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(shown[0], torch.cat(wanted))
    assert not torch.allclose(experts(plain)[1], wanted[1][0], atol=1e-4)


def test_a_blip2_qformer_that_reads_text():
    """As Blip2ForImageTextRetrieval calls it: embedded queries and text in one tensor, with the queries' number."""
    host = make_vlm("blip2-t5", qformer=dict(use_qformer_text_input=True))
    model = petal(host, expert_scope="text", expert_gate="sample")
    qformer, shown = model.base_model.model.qformer, []
    qformer.dropout.register_forward_hook(lambda module, args, output: shown.append((args[0], output)))
    draw = torch.Generator().manual_seed(3)
    embedded, image = torch.randn(2, QUERIES + 4, 32, generator=draw), torch.randn(2, 5, IMAGE_WIDTH, generator=draw)
    mask = torch.ones(2, QUERIES + 4, dtype=torch.long)
    mask[1, -1] = 0
    with torch.no_grad():
        qformer(embedded, QUERIES, attention_mask=mask, encoder_hidden_states=image)
        ((plain, mixed),) = shown
        text = (torch.arange(QUERIES + 4) >= QUERIES).expand(2, -1)
        wanted = model.base_model.petal_shared["default"].experts(plain, text, text & mask.bool())
    assert torch.equal(mixed, wanted) and torch.equal(mixed[:, :QUERIES], plain[:, :QUERIES])


@pytest.mark.parametrize("kind", VLMS)
def test_at_the_start_only_experts_and_residuals_show(kind):
    host = make_vlm(kind)
    wanted = vlm_logits(host, kind)
    model = get_peft_model(host, PetalConfig(rank=4, experts=0, query_transform=False)).eval()
    assert torch.equal(vlm_logits(model, kind), wanted)  # V is zero
    with torch.enable_grad():
        model.train()(**vlm_batch(kind)).loss.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained and all(".v." in name for name in trained)


@pytest.mark.parametrize("kind", VLMS)
def test_every_trained_tensor_gets_a_gradient_and_no_other(kind):
    options = {} if kind == "llava" else dict(cross_query_transform=True, context="per_sample")
    model = petal(kind, threshold="soft", threshold_init=0.01, expert_gate="token", **options).train()
    model(**vlm_batch(kind)).loss.backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad != (p.grad is not None and p.grad.any())]
    assert not without
    assert all(".petal_" in name for name, p in model.named_parameters() if p.requires_grad)


def test_chunked_feed_forward_gets_the_same_residuals():
    kind, options = "instructblip-t5", dict(cross_query_transform=True)
    whole = petal(kind, **options)
    chunked = petal(make_vlm(kind), **options)
    for host_layer in chunked.base_model.model.qformer.encoder.layer:
        host_layer.chunk_size_feed_forward = 3
    torch.testing.assert_close(vlm_logits(chunked, kind), vlm_logits(whole, kind))


def test_batch_mean_couples_samples_and_the_others_do_not():
    def first(context, rows):
        model = petal("instructblip-t5", context=context)
        batch = {name: value[:rows] for name, value in vlm_batch("instructblip-t5").items()}
        with torch.no_grad():
            return model(**batch).logits[0]

    for context in ("off", "per_sample"):
        torch.testing.assert_close(first(context, 1), first(context, 2))
    assert not torch.allclose(first("batch_mean", 1), first("batch_mean", 2), atol=1e-4)
    torch.testing.assert_close(first("batch_mean", 1), first("batch_mean", 1))  # a batch of one is defined


def test_output_recorders_see_what_the_next_layer_gets():
    model, host = petal("instructblip-t5"), make_vlm("instructblip-t5")
    inputs = qformer_inputs("instructblip-t5", host)
    with torch.no_grad():
        out = model.base_model.model.qformer(**inputs, output_hidden_states=True)
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)


# ---- how often it computes it ----


@pytest.fixture
def calls(monkeypatch):
    """What petx.functional was asked for: (name, number of modes, whether the input was projected already)."""
    seen = []
    real_cores, real_update, real_projected = petx.functional.mode_cores, layer.update, layer.projected_update

    def mode_cores(core, modes, *rest, **options):
        seen.append(("cores", len(modes), False))
        return real_cores(core, modes, *rest, **options)

    def update(x, u, v, cores, *rest, **options):
        seen.append(("update", len(cores), u is None))
        return real_update(x, u, v, cores, *rest, **options)

    def projected_update(x, projected, u, v, cores, *rest):
        seen.append(("update", len(cores), u is None))
        return real_projected(x, projected, u, v, cores, *rest)

    monkeypatch.setattr(layer, "projected_update", projected_update)
    monkeypatch.setattr(petx.functional, "mode_cores", mode_cores)
    monkeypatch.setattr(layer, "update", update)
    return seen


@pytest.mark.parametrize("shared", [False, True])
def test_one_product_makes_all_cores_and_one_call_all_updates_of_an_input(calls, shared):
    model = petal("instructblip-t5", share_image_core=shared).train()
    calls.clear()  # building an adapter looks at its cores
    model(**vlm_batch("instructblip-t5"))
    cores = sorted(number for name, number, _ in calls if name == "cores")
    assert cores == ([15] if shared else [4, 11])  # 3 layers of 3, 2 cross-attentions of 1 and 2
    updates = [(number, projected) for name, number, projected in calls if name == "update"]
    assert updates == [(3, False), (1, False), (2, True), (3, False), (3, False), (1, False), (2, True)]


def test_image_features_are_projected_once(monkeypatch):
    from petx.tuners.petal import running

    seen = []
    real = running.project
    monkeypatch.setattr(running, "project", lambda x, u: seen.append(x) or real(x, u))
    model = petal("instructblip-t5")
    vlm_logits(model, "instructblip-t5")
    assert len(seen) == 1 and seen[0].shape[-1] == IMAGE_WIDTH
    vlm_logits(model, "instructblip-t5")
    assert len(seen) == 2


@pytest.mark.parametrize("checkpointing", [None, dict(use_reentrant=False), dict(use_reentrant=True)])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_nothing_is_kept_between_passes(checkpointing):
    model = petal("instructblip-t5").train()
    if checkpointing:
        model.gradient_checkpointing_enable(checkpointing)
    loss = model(**vlm_batch("instructblip-t5")).loss
    (tower,) = model.base_model._towers.values()

    def left():
        return [tower._pass, *(group._ready for group in tower.groups), *(tail._rows for tail in tower.tails)]

    assert all(held is None for held in left())
    loss.backward()
    assert all(held is None for held in left())


# ---- where it goes ----


@pytest.mark.parametrize(
    ("kind", "projections", "layers", "mixed"),
    [
        ("instructblip-t5", 15, 3, ["qformer.embeddings"]),
        ("instructblip-llama", 15, 3, ["qformer.embeddings"]),
        ("blip2-t5", 15, 3, ["qformer.dropout"]),
        ("llava", 6, 2, ["model.multi_modal_projector", "model.language_model.embed_tokens"]),
    ],
)
def test_what_was_adapted_is_a_list_and_words(kind, projections, layers, mixed):
    model = petal(kind)
    places = adapted(model)
    assert sum(place.rank is not None for place in places) == len(petal_layers(model)) == projections
    assert sum(place.kind == "query transformation" for place in places) == layers
    assert [place.path for place in places if place.kind == "expert mixture"] == mixed
    host = make_vlm(kind)
    assert all(host.get_submodule(place.path) is not None for place in places)
    words, counts = describe(model), parameter_counts(model)
    assert f"trainable {counts['trainable']:,} of {counts['total']:,} parameters" in words
    assert counts["trainable"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counts["total"] == sum(p.numel() for p in model.parameters())


def test_describe_names_what_differs():
    words = describe(
        petal("instructblip-t5", core="diagonal", threshold="soft", context="batch_mean", expert_gate="token")
    )
    for part in (
        "core 4, soft threshold",
        "token gate",
        "the batch's mean (couples its samples)",
        "32 -> 32",
        "24 -> 32",
    ):
        assert part in words
    words = describe(petal("instructblip-t5", image_rank=2))
    assert "'text', shared by all: rank 4, 32 -> 32, core 4 x 4 x 4" in words
    assert "'image', shared by all: rank 2, 24 -> 32, core 2 x 2 x 2" in words
    assert "VL-PET adapter" in describe(get_peft_model(make_host("bart"), VLPetConfig()))
    with pytest.raises(UserError, match="model must be one with an adapter of petx, got InstructBlipFor"):
        describe(make_vlm("instructblip-t5"))


@pytest.mark.parametrize(
    ("kind", "towers", "factors", "number"),
    [
        ("llava", ["vision_tower"], {"model_vision_tower"}, 3),  # the projector does not see the last layer
        ("llava", ["vision_tower", "language_model"], {"model_vision_tower", "model_language_model"}, 9),
        ("instructblip-llama", ["qformer", "language_model"], {"text", "image", "language_model"}, 21),
        ("instructblip-t5", ["language_model"], {"language_model", "language_model_cross"}, 9),
    ],
)
def test_towers_are_chosen_by_name(kind, towers, factors, number):
    options = dict(experts=0, query_transform=False) if kind == "instructblip-t5" else {}
    model = petal(kind, towers=towers, **options)
    wanted = vlm_logits(model, kind)
    assert set(model.base_model.petal_shared["default"].factors) == factors and len(petal_layers(model)) == number
    assert {place.path.split(".")[0] for place in adapted(model) if place.rank} <= {"model", *towers}
    model(**vlm_batch(kind)).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)
    with model.disable_adapter():
        plain = vlm_logits(model, kind)
    assert torch.equal(plain, vlm_logits(make_vlm(kind), kind)) and not torch.allclose(plain, wanted, atol=1e-4)


def test_grouped_query_attention_shares_u_and_core():
    kind = "llava"
    host = make_vlm(kind, num_key_value_heads=1)
    model = petal(host)
    (factors,) = model.base_model.petal_shared["default"].factors.values()
    assert {name: tuple(v.shape) for name, v in factors.v.items()} == {"20": (20, 4), "10": (10, 4)}
    model.train()(**vlm_batch(kind)).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(("scope", "places"), [("text", 1), ("image", 1), ("all", 2)])
def test_llava_experts_read_image_or_text_embeddings(scope, places):
    model = petal("llava", expert_scope=scope)
    host, kind = model.base_model.model, "llava"
    assert len(model.base_model.petal_shared["default"].mixed) == places
    tokens = torch.tensor([[5, 6]])
    plain = make_vlm(kind).model
    experts = model.base_model.petal_shared["default"].experts
    with torch.no_grad():
        words = host.model.language_model.embed_tokens(tokens)
        features = host.model.multi_modal_projector(torch.ones(1, 2, IMAGE_WIDTH))
        own = plain.language_model.embed_tokens(tokens), plain.multi_modal_projector(torch.ones(1, 2, IMAGE_WIDTH))
        torch.testing.assert_close(words, own[0] if scope == "image" else experts(own[0]))
        torch.testing.assert_close(features, own[1] if scope == "text" else experts(own[1]))


def test_second_adapter_may_adapt_other_towers():
    model = petal("instructblip-llama", experts=0)
    first = vlm_logits(model, "instructblip-llama")
    model.add_adapter("second", PetalConfig(rank=3, experts=0, towers=["language_model"]))
    randomise(model, "second")
    assert torch.equal(vlm_logits(model, "instructblip-llama"), first)
    model.set_adapter("second")
    second = vlm_logits(model, "instructblip-llama")
    alone = get_peft_model(make_vlm("instructblip-llama"), PetalConfig(rank=3, experts=0, towers=["language_model"]))
    set_peft_model_state_dict(alone, get_peft_model_state_dict(model, adapter_name="second"))
    torch.testing.assert_close(vlm_logits(alone.eval(), "instructblip-llama"), second)


def test_experts_follow_the_adapter_whatever_its_towers():
    model = petal("llava", expert_scope="image")
    model.add_adapter("second", PetalConfig(rank=3, experts=2, expert_scope="image", towers=["vision_tower"]))
    randomise(model, "second")
    plain, x = make_vlm("llava").model.multi_modal_projector, torch.ones(1, 2, IMAGE_WIDTH)
    for name in ("default", "second"):
        model.set_adapter(name)
        experts = model.base_model.petal_shared[name].experts
        with torch.no_grad():
            torch.testing.assert_close(model.base_model.model.model.multi_modal_projector(x), experts(plain(x)))


def test_a_rank_for_images_is_counted_saved_and_loaded(tmp_path):
    model = petal("instructblip-t5", image_rank=2)
    counts, plain = parameter_counts(model), parameter_counts(petal("instructblip-t5"))
    assert counts["text"] == plain["text"] and counts["image"] == 2 * (IMAGE_WIDTH + 32) + 2**3
    assert {(place.factors, place.rank) for place in adapted(model) if place.rank} == {("text", 4), ("image", 2)}
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(make_vlm("instructblip-t5"), tmp_path).eval()
    assert torch.equal(vlm_logits(again, "instructblip-t5"), vlm_logits(model, "instructblip-t5"))
    assert again.peft_config["default"].image_rank == 2
