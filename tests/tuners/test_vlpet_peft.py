"""The VL-PET tuner as a PEFT method: saving, loading, several adapters, copies."""

import copy
import json
import shutil
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from petx.errors import UserError
from petx.tuners import VLPetConfig, load_adapter
from tests.fixtures.tiny_hosts import HOSTS, batch, layers, logits, make_host, randomise, tuned

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


# ---- saving and loading ----


@pytest.mark.parametrize("kind", HOSTS)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saved_adapter_loads_under_any_name_bit_for_bit(kind, low_cpu_mem_usage, tmp_path):
    model = tuned(kind)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert not any("default" in name for name in saved) and (tmp_path / "adapter_config.json").is_file()
    assert sum(t.numel() for t in saved.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    options = dict(adapter_name="other", low_cpu_mem_usage=low_cpu_mem_usage)
    loaded = PeftModel.from_pretrained(make_host(kind), tmp_path, **options).eval()
    assert torch.equal(logits(loaded, kind), logits(model, kind))
    again = get_peft_model_state_dict(loaded, adapter_name="other")
    assert again.keys() == saved.keys() and all(torch.equal(again[name], saved[name]) for name in saved)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_full_state_dict_round_trip():
    model, other = tuned("bart"), tuned("bart", seed=9)
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other, "bart"), logits(model, "bart"))


def test_an_adapter_of_another_host_is_refused(tmp_path):
    tuned("vl_bart").save_pretrained(tmp_path)
    others = {
        "another width of features": make_host("vl_bart", visual_width=24),
        "fewer layers": make_host("vl_bart", encoder_layers=1),
        "another width": make_host("vl_bart", d_model=16),
        "no visual embedding": make_host("bart"),
    }
    for host in others.values():
        before = {name: tensor.clone() for name, tensor in host.state_dict().items()}
        with pytest.raises(UserError, match="made for another model"):
            PeftModel.from_pretrained(host, tmp_path)
        after = host.state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(UserError, match=r"no module of T5ForConditionalGeneration matches .*preset 'bart'"):
        PeftModel.from_pretrained(make_host("t5"), tmp_path)


@pytest.mark.parametrize("damage", ["lacks", "too many"])
def test_damaged_files_are_refused_with_nothing_loaded(tmp_path, damage):
    tuned("bart").save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    saved = load_file(file)
    if damage == "lacks":
        del saved["base_model.model.model.encoder.layers.1.fc2.vlpet_adapter.up.weight"]
        message = r"adapter 'second': the saved tensors lack .*layers\.1\.fc2.*up\.weight, so nothing was loaded"
    else:
        saved["base_model.model.model.encoder.layers.7.fc2.vlpet_adapter.up.weight"] = torch.zeros(2)
        message = r"layers\.7\.fc2\.vlpet_adapter\.up\.weight fit no adapter of this model, so nothing was loaded"
    save_file(saved, file)
    model = tuned("bart", seed=4)
    before = logits(model, "bart")
    with pytest.raises(ValueError, match=message):
        model.load_adapter(tmp_path, "second")
    assert torch.equal(logits(model, "bart"), before)
    second = model.base_model.model.model.encoder.layers[0].fc2.vlpet_adapter.second
    assert not torch.equal(
        second.up.weight, saved["base_model.model.model.encoder.layers.0.fc2.vlpet_adapter.up.weight"]
    )


def test_configuration_keeps_what_was_resolved(tmp_path):
    tuned("t5", rank=8).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (saved["peft_type"], saved["preset"], saved["scale"], saved["gate_rank"]) == ("VLPET", "t5", 0.3, 8)
    assert saved["host"]["sites"] == {"encoder": 4, "decoder": 2}
    assert "encoder.final_layer_norm" in saved["modules_to_save"]


# ---- several adapters ----


@pytest.mark.parametrize("kind", HOSTS)
def test_two_adapters_switch_and_go(kind, tmp_path):
    model = tuned(kind)
    first = logits(model, kind)
    model.add_adapter("second", VLPetConfig(rank=6, heads=2, decoder_rank=2, granularity="small", mask_padding=True))
    randomise(model, "second")
    assert torch.equal(logits(model, kind), first)
    model.set_adapter("second")
    second = logits(model, kind)
    assert not torch.allclose(first, second)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all(".second." in name for name in trained)
    model.save_pretrained(tmp_path)
    alone = PeftModel.from_pretrained(make_host(kind), tmp_path / "second").eval()
    assert torch.equal(logits(alone, kind), second)
    model.set_adapter("default")
    assert torch.equal(logits(model, kind), first)
    model.delete_adapter("second")
    assert torch.equal(logits(model, kind), first) and list(model.peft_config) == ["default"]
    assert not any("second" in name for name in model.state_dict())


def test_each_adapter_keeps_its_own_word_on_padding():
    model = tuned("t5", granularity="small")
    first = logits(model, "t5")
    model.add_adapter("second", VLPetConfig(rank=8, decoder_rank=4, granularity="small", mask_padding=True))
    assert torch.equal(logits(model, "t5"), first)


def test_more_than_one_active_adapter_is_an_error():
    model = tuned("bart")
    model.add_adapter("second", VLPetConfig(rank=6, heads=2))
    with pytest.raises(ValueError, match="one adapter at a time can be active or merged, got .*'default', 'second'"):
        model.base_model.set_adapter(["default", "second"])
    assert model.active_adapters == ["default"]
    with pytest.raises(UserError, match="no adapter 'third' in this model; there are: default, second"):
        model.base_model.adapted("third")


@pytest.mark.parametrize("kind", HOSTS)
def test_disabling_gives_the_host_back(kind):
    wanted = logits(make_host(kind), kind)
    model = tuned(kind)
    with model.disable_adapter():
        assert torch.equal(logits(model, kind), wanted)
    assert not torch.allclose(logits(model, kind), wanted)
    assert model.get_model_status().enabled is True and model.get_layer_status()[0].active_adapters == ["default"]


def test_deepcopy_is_independent():
    model = tuned("bart")
    wanted = logits(model, "bart")
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, "bart"), wanted)
    for layer in layers(model):
        layer.vlpet_adapter.default.up.weight.data.zero_()
    assert torch.equal(logits(twin, "bart"), wanted)
    taps = sum(len(module._forward_pre_hooks) for module in model.modules())  # and one for each stack, its threads
    assert not any(module._forward_pre_hooks for module in twin.unload().modules())
    assert taps == 4 + 2 == sum(len(module._forward_pre_hooks) for module in model.modules())


def test_an_interrupted_pass_leaves_a_model_that_can_be_copied_and_used():
    model = tuned("bart")
    wanted = logits(model, "bart")
    site = model.base_model.model.model.encoder.layers[0].fc2

    def stop(*_):
        raise KeyboardInterrupt

    handle = site.register_forward_pre_hook(stop)  # after the tap on fc1
    with pytest.raises(KeyboardInterrupt):
        model(**batch("bart"))
    handle.remove()
    assert site._x is not None and site._x.requires_grad
    assert torch.equal(logits(copy.deepcopy(model), "bart"), wanted) and torch.equal(logits(model, "bart"), wanted)


def test_a_base_saved_by_a_relative_path_and_loaded_by_its_absolute_one_is_no_other(tmp_path, monkeypatch):
    """Of another model PEFT warns, rightly."""
    monkeypatch.chdir(tmp_path)
    host = make_host("bart")
    host.save_pretrained("host")
    config = VLPetConfig(rank=8, heads=4, decoder_rank=4)
    get_peft_model(type(host).from_pretrained("host"), config).save_pretrained("adapter")
    shutil.copytree("host", "other")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = load_adapter(type(host).from_pretrained(tmp_path / "host"), "adapter")
    assert loaded.peft_config["default"].base_model_name_or_path == str(tmp_path / "host")
    with pytest.warns(UserWarning, match="was renamed from"):
        load_adapter(type(host).from_pretrained(tmp_path / "other"), "adapter")
