"""The PETAL tuner as a PEFT method: saving, loading, several adapters, copies, merging."""

import copy
import json

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

import petx.functional
from petx.errors import UserError
from petx.tuners import PetalConfig, VLPetConfig, load_adapter
from tests.fixtures.tiny_hosts import make_host
from tests.fixtures.tiny_vlms import VLMS, make_vlm, petal, petal_layers, randomise, vlm_batch, vlm_logits

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
KIND = "instructblip-t5"


def hooks(model):
    """Number of PETAL's hooks; transformers leaves its own."""
    held = [kept for module in model.modules() for kept in (module._forward_hooks, module._forward_pre_hooks)]
    return sum(hook.__module__.startswith("petx.") for hooks in held for hook in hooks.values())


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, hooks(model)


def assert_untouched(model, before):
    tensors, number = before
    now = model.state_dict()
    assert now.keys() == tensors.keys() and all(torch.equal(now[name], tensors[name]) for name in now)
    assert hooks(model) == number and not hasattr(model, "peft_config")


# ---- saving and loading ----


@pytest.mark.parametrize("kind", VLMS)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saved_adapter_loads_under_any_name_bit_for_bit(kind, low_cpu_mem_usage, tmp_path):
    model = petal(kind, threshold="soft", threshold_per_rank=True)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert not any("default" in name for name in saved) and (tmp_path / "adapter_config.json").is_file()
    assert sum(t.numel() for t in saved.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    options = dict(adapter_name="text", low_cpu_mem_usage=low_cpu_mem_usage)  # a name that its keys contain
    loaded = PeftModel.from_pretrained(make_vlm(kind), tmp_path, **options).eval()
    assert torch.equal(vlm_logits(loaded, kind), vlm_logits(model, kind))
    again = get_peft_model_state_dict(loaded, adapter_name="text")
    assert again.keys() == saved.keys() and all(torch.equal(again[name], saved[name]) for name in saved)
    assert not any(p.requires_grad for p in loaded.parameters())
    checked = load_adapter(make_vlm(kind), tmp_path)
    assert torch.equal(vlm_logits(checked, kind), vlm_logits(model, kind)) and not checked.training


def test_training_goes_on_from_a_saved_adapter(tmp_path):
    """As transformers' Trainer resumes: the tensors go into the adapter that is there, which stays trainable."""
    model, other = petal(KIND), petal(KIND, seed=9)
    model.save_pretrained(tmp_path)
    other.load_adapter(tmp_path, "default", is_trainable=True)
    assert torch.equal(vlm_logits(other.eval(), KIND), vlm_logits(model, KIND))
    assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in model.parameters()]


def test_full_state_dict_round_trip():
    model, other = petal(KIND), petal(KIND, seed=9)
    other.load_state_dict(model.state_dict())
    assert torch.equal(vlm_logits(other, KIND), vlm_logits(model, KIND))


def test_configuration_keeps_what_was_resolved(tmp_path):
    petal(KIND).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (saved["peft_type"], saved["towers"]) == ("PETAL", ["qformer"])
    tower = {"projections": 15, "widths": [[24, 32], [32, 32]], "layers": 3}
    assert saved["host"] == {"model_type": "instructblip", "towers": {"qformer": tower}, "experts": 32}


def test_an_adapter_of_another_host_is_refused(tmp_path):
    petal(KIND).save_pretrained(tmp_path)
    for change in (dict(num_hidden_layers=4), dict(cross_attention_frequency=1), dict(hidden_size=16)):
        host = make_vlm(KIND, qformer=change)
        before = snapshot(host)
        for load in (PeftModel.from_pretrained, load_adapter):
            with pytest.raises(UserError, match="made for another model"):
                load(host, tmp_path)
        assert_untouched(host, before)
    same_language_model = load_adapter(make_vlm("instructblip-llama"), tmp_path)  # nothing depends on it
    assert len(petal_layers(same_language_model)) == 15


def damage(folder, how):
    file = folder / "adapter_model.safetensors"
    content = file.read_bytes()
    if how == "truncated":
        file.write_bytes(content[:-100])
    elif how == "no header":
        file.write_bytes(b"\xff" * 40)
    elif how == "gone":
        file.unlink()
    elif how == "another method":
        config = json.loads((folder / "adapter_config.json").read_text()) | {"peft_type": "LORA"}
        (folder / "adapter_config.json").write_text(json.dumps(config))
    elif how == "no configuration":
        (folder / "adapter_config.json").write_text("{")
    elif how == "configuration altered":
        config = json.loads((folder / "adapter_config.json").read_text()) | {"core": "square"}
        (folder / "adapter_config.json").write_text(json.dumps(config))
    else:
        saved = load_file(file)
        key = "base_model.petal_shared.factors.text.u"
        if how == "lacks":
            del saved[key]
        elif how == "too many":
            saved["base_model.petal_shared.factors.text.w"] = torch.zeros(2)
        elif how == "another shape":
            saved[key] = saved[key][:2].clone()
        elif how in DTYPES:
            saved[key] = saved[key].to(DTYPES[how])
        else:
            saved[key][0, 0] = torch.nan
        save_file(saved, file)


DTYPES = {"integers": torch.int64, "complex": torch.complex64}
DAMAGES = {
    "truncated": r"adapter_model\.safetensors is truncated or was altered",
    "no header": r"adapter_model\.safetensors is truncated or was altered",
    "gone": r"adapter_model\.safetensors is not there",
    "another method": r"the adapter was made by 'LORA', and petx's methods are PETAL, VLPET",
    "no configuration": r"is no saved adapter: cannot read adapter_config\.json",
    "configuration altered": r"core must be one of 'full', 'diagonal', got 'square'",
    "lacks": r"factors\.text\.u is missing",
    "too many": r"factors\.text\.w is of no use to this adapter",
    "another shape": r"factors\.text\.u is \[2, 32\], wanted \[4, 32\]",
    "not finite": r"factors\.text\.u has values that are not finite",
    "integers": r"factors\.text\.u is torch\.int64, wanted a floating type",
    "complex": r"factors\.text\.u is torch\.complex64, wanted a floating type",
}


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_files_are_refused_and_the_model_is_as_before(tmp_path, how):
    petal(KIND).save_pretrained(tmp_path)
    damage(tmp_path, how)
    host = make_vlm(KIND)
    before = snapshot(host)
    with pytest.raises(UserError, match=DAMAGES[how]):
        load_adapter(host, tmp_path)
    assert_untouched(host, before)
    model = petal(host, seed=4)
    wanted, flags = vlm_logits(model, KIND), {name: p.requires_grad for name, p in model.named_parameters()}
    with pytest.raises(UserError, match=DAMAGES[how]):
        load_adapter(model, tmp_path, "second")
    assert torch.equal(vlm_logits(model, KIND), wanted) and list(model.peft_config) == ["default"]
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


@pytest.mark.parametrize("how", ["lacks", "too many", "another shape"])
def test_pefts_own_loading_refuses_them_too_with_nothing_loaded(tmp_path, how):
    petal(KIND).save_pretrained(tmp_path)
    damage(tmp_path, how)
    model = petal(KIND, seed=4)
    before = vlm_logits(model, KIND)
    with pytest.raises(UserError, match="so nothing was loaded"):
        model.load_adapter(tmp_path, "second")
    assert torch.equal(vlm_logits(model, KIND), before)


def test_a_vlpet_adapter_is_not_petals(tmp_path):
    get_peft_model(make_host("bart"), VLPetConfig(rank=8, decoder_rank=4)).save_pretrained(tmp_path)
    host = make_vlm(KIND)
    before = snapshot(host)
    with pytest.raises(UserError, match="no module of InstructBlipForConditionalGeneration matches"):
        load_adapter(host, tmp_path)
    assert_untouched(host, before)
    assert load_adapter(make_host("bart"), tmp_path).active_adapters == ["default"]


# ---- several adapters ----


@pytest.mark.parametrize("kind", VLMS)
def test_two_adapters_switch_and_go(kind, tmp_path):
    model = petal(kind)
    first = vlm_logits(model, kind)
    model.add_adapter("second", PetalConfig(rank=3, core="diagonal", experts=0, query_transform=False))
    randomise(model, "second")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all("default" in name.split(".") for name in trained)
    assert torch.equal(vlm_logits(model, kind), first)
    model.set_adapter("second")
    second = vlm_logits(model, kind)
    assert not torch.allclose(first, second)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all("second" in name.split(".") for name in trained)
    model.save_pretrained(tmp_path)
    alone = PeftModel.from_pretrained(make_vlm(kind), tmp_path / "second").eval()
    assert torch.equal(vlm_logits(alone, kind), second)
    beside = load_adapter(petal(kind), tmp_path / "second", "loaded")
    beside.set_adapter("loaded")
    assert torch.equal(vlm_logits(beside, kind), second)
    model.set_adapter("default")
    assert torch.equal(vlm_logits(model, kind), first)
    model.delete_adapter("second")
    assert torch.equal(vlm_logits(model, kind), first) and list(model.peft_config) == ["default"]
    assert not any("second" in name.split(".") for name in model.state_dict())


def test_deleting_the_active_adapter_activates_the_other():
    model = petal(KIND)
    model.add_adapter("second", PetalConfig(rank=3, experts=2))
    with pytest.warns(UserWarning, match="Setting active adapter to second"):
        model.delete_adapter("default")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("petal_shared" in name for name in trained) and any("petal_mode" in name for name in trained)


def test_more_than_one_active_adapter_is_an_error():
    model = petal(KIND)
    model.add_adapter("second", PetalConfig(rank=3))
    with pytest.raises(ValueError, match="one adapter at a time can be active or merged, got .*'default', 'second'"):
        model.base_model.set_adapter(["default", "second"])
    assert model.active_adapters == ["default"]
    with pytest.raises(UserError, match="no adapter 'third' in this model; there are: default, second"):
        model.base_model.adapted("third")


@pytest.mark.parametrize("kind", VLMS)
def test_disabling_gives_the_host_back(kind):
    wanted = vlm_logits(make_vlm(kind), kind)
    options = {} if kind == "llava" else dict(context="batch_mean", cross_query_transform=True)
    model = petal(kind, **options)
    with model.disable_adapter():
        assert torch.equal(vlm_logits(model, kind), wanted)
        assert not any(p.requires_grad for p in model.parameters())
    assert not torch.allclose(vlm_logits(model, kind), wanted)
    assert any("petal_shared" in name for name, p in model.named_parameters() if p.requires_grad)
    assert model.get_model_status().enabled is True and model.get_layer_status()[0].active_adapters == ["default"]


def test_modules_to_save_are_trained_beside(tmp_path):
    model = petal(KIND, modules_to_save=["language_projection"]).train()
    model(**vlm_batch(KIND)).loss.backward()
    assert model.base_model.model.language_projection.modules_to_save["default"].weight.grad.any()
    model.eval().save_pretrained(tmp_path)
    torch.testing.assert_close(vlm_logits(load_adapter(make_vlm(KIND), tmp_path), KIND), vlm_logits(model, KIND))


# ---- copies ----


def test_deepcopy_is_independent():
    model = petal(KIND)
    wanted = vlm_logits(model, KIND)
    twin = copy.deepcopy(model)
    assert torch.equal(vlm_logits(twin, KIND), wanted)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "petal" in name:
                parameter.zero_()
    assert torch.equal(vlm_logits(twin, KIND), wanted)
    taps = hooks(model)
    assert hooks(twin.unload()) == 0 and hooks(model) == taps > 0


def test_a_whole_model_is_written_to_a_file_and_read_again(tmp_path):
    model = petal(KIND)
    wanted = vlm_logits(model, KIND)
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(vlm_logits(again, KIND), wanted) and hooks(again) == hooks(model)
    again.train()(**vlm_batch(KIND)).loss.backward()
    assert all(p.grad is not None for name, p in again.named_parameters() if "petal_mode" in name)


def test_moving_between_dtypes_keeps_factors_shared():
    model = petal(KIND).double()
    wanted = vlm_logits(petal(KIND), KIND)
    batch = vlm_batch(KIND)
    batch["pixel_values"] = batch["pixel_values"].double()
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, wanted.double(), rtol=1e-4, atol=1e-4)
    assert {p.dtype for p in model.base_model.petal_shared.parameters()} == {torch.float64}


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_pass_leaves_a_model_that_can_be_copied_and_used(interruption):
    model = petal(KIND).train()
    attention = model.base_model.model.qformer.encoder.layer[0].attention.attention

    def stop(*_):
        raise interruption

    handle = attention.value.register_forward_pre_hook(stop)  # query and key were computed, and value's waits
    with pytest.raises(interruption):
        model(**vlm_batch(KIND))
    handle.remove()
    ready = [group._ready for group in model.base_model._towers["qformer"].groups]
    assert (ready[0] is None) == (interruption is RuntimeError)
    model.eval()
    wanted = vlm_logits(petal(KIND), KIND)
    assert torch.equal(vlm_logits(copy.deepcopy(model), KIND), wanted) and torch.equal(vlm_logits(model, KIND), wanted)


# ---- merging ----

PLAIN = dict(experts=0, query_transform=False)


@pytest.mark.parametrize("kind", VLMS)
@pytest.mark.parametrize("options", [dict(), dict(core="diagonal", threshold="soft", threshold_init=0.1)])
def test_projections_merge_into_plain_weights_and_back(kind, options, monkeypatch):
    model = petal(kind, **PLAIN, **options)
    wanted = vlm_logits(model, kind)
    calls = []
    real = petx.functional.cp_reconstruct
    monkeypatch.setattr(petx.functional, "cp_reconstruct", lambda w, *a, **k: calls.append(len(w)) or real(w, *a, **k))
    model.merge_adapter(safe_merge=True)
    assert sum(calls) == len(petal_layers(model)) and len(calls) == (1 if kind == "llava" else 2)
    torch.testing.assert_close(vlm_logits(model, kind), wanted, rtol=1e-4, atol=1e-5)
    assert all(layer.merged for layer in petal_layers(model))
    with model.disable_adapter():
        assert torch.equal(vlm_logits(model, kind), vlm_logits(make_vlm(kind), kind))
    model.unmerge_adapter()
    assert torch.equal(vlm_logits(model, kind), wanted)
    host = model.merge_and_unload()
    torch.testing.assert_close(vlm_logits(host, kind), wanted, rtol=1e-4, atol=1e-5)
    assert not petal_layers(host) and not hooks(host)
    assert host.state_dict().keys() == make_vlm(kind).state_dict().keys()


def test_merged_weight_is_the_update_written_out():
    model = petal(KIND, **PLAIN)
    saved = get_peft_model_state_dict(model)
    path = "qformer.encoder.layer.0.crossattention.attention.value"
    image = "base_model.petal_shared.factors.image"
    core, u, v = (saved[f"{image}.{name}"] for name in ("cores.core", "u", "v.32"))
    m = torch.einsum("ijk,k->ij", core, saved[f"base_model.model.{path}.petal_mode"])
    wanted = make_vlm(KIND).get_submodule(path).weight + v @ m.T @ u
    merged = model.merge_and_unload().get_submodule(path).weight
    torch.testing.assert_close(merged, wanted, rtol=1e-5, atol=1e-6)


def test_the_rest_goes_on_beside_merged_projections():
    model = petal(KIND, context="per_sample")
    wanted = vlm_logits(model, KIND)
    model.merge_adapter()
    torch.testing.assert_close(vlm_logits(model, KIND), wanted, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    assert torch.equal(vlm_logits(model, KIND), wanted)


def test_one_layer_merges_by_itself():
    model = petal(KIND, **PLAIN)
    wanted = vlm_logits(model, KIND)
    layer = petal_layers(model)[1]
    layer.merge()
    torch.testing.assert_close(vlm_logits(model, KIND), wanted, rtol=1e-4, atol=1e-5)
    layer.unmerge()
    assert torch.equal(vlm_logits(model, KIND), wanted)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(), "its experts and its query transformations have no place in the frozen model"),
        (dict(experts=0, query_transform=False, context="per_sample"), "its context enhancement have no place"),
    ],
)
def test_what_has_no_place_in_plain_weights_says_so_and_stays(options, reason):
    model = petal(KIND, **options)
    wanted = vlm_logits(model, KIND)
    with pytest.raises(UserError, match=reason):
        model.merge_and_unload()
    assert torch.equal(vlm_logits(model, KIND), wanted) and len(petal_layers(model)) == 15


def test_two_adapters_do_not_merge():
    model = petal(KIND, **PLAIN)
    model.add_adapter("second", PetalConfig(rank=3, **PLAIN))
    with pytest.raises(ValueError, match="one adapter at a time can be active or merged"):
        model.merge_adapter(["default", "second"])
    with pytest.raises(UserError, match="there is no adapter 'third'"):
        model.merge_adapter(["third"])
    assert not any(layer.merged for layer in petal_layers(model))


def test_unload_gives_the_host_back():
    model = petal(KIND)
    host = model.unload()
    assert not petal_layers(host) and not hooks(host)
    assert torch.equal(vlm_logits(host, KIND), vlm_logits(make_vlm(KIND), KIND))
    get_peft_model(host, PetalConfig())
