"""Registering the VL-PET tuner with PEFT, and what it refuses."""

import subprocess
import sys

import pytest
import torch
from peft import get_peft_model
from peft.utils.peft_types import PeftType

from petx.errors import UserError
from petx.tuners import VLPetConfig
from petx.tuners._register import add_peft_type
from tests.fixtures.tiny_hosts import WIDTH, make_host, tuned

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def test_peft_type_has_the_member_in_every_way_the_enum_is_read():
    member = PeftType["VLPET"]
    assert member is PeftType("VLPET") is PeftType.VLPET and member in list(PeftType) and member == "VLPET"
    assert add_peft_type("VLPET") is member and list(PeftType).count(member) == 1


def test_registering_with_a_changed_peft_is_an_import_error(monkeypatch):
    from petx.tuners import _register

    class Sealed(type):
        __members__ = {}

        def __setattr__(cls, name, value):
            raise AttributeError("sealed")

    monkeypatch.setattr(_register, "PeftType", Sealed("PeftType", (str,), {}))
    with pytest.raises(ImportError, match=r"cannot add OTHER to PeftType of peft \d"):
        _register.add_peft_type("OTHER")
    monkeypatch.setattr(_register, "BaseTuner", object)
    with pytest.raises(ImportError, match=r"need peft >= 0\.21"):
        _register.register_tuner("other", None, None)


@pytest.mark.slow
def test_saved_configuration_is_found_by_its_type_in_a_fresh_process(tmp_path):
    VLPetConfig(granularity="small", rank=12).save_pretrained(tmp_path)
    program = (
        "import petx.tuners, sys; from peft import PeftConfig; config = PeftConfig.from_pretrained(sys.argv[1]); "
        "print(type(config).__name__, config.granularity, config.rank, config.heads)"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert done.stdout == "VLPetConfig small 12 None\n", done.stderr


NO_TAP = [dict(output=r".*encoder\.layers\.\d+\.fc2")]
WRONG_TAP = [dict(output=r"(.*encoder\.layers\.\d+)\.fc2", input=r"\1.fc3")]
TWICE = [dict(output=r"(.*encoder\.layers\.\d+)\.fc2", input=r"\1.fc1")] * 2
NO_GROUP = [dict(output=r".*encoder\.layers\.\d+\.fc2", input=r"\1.fc1")]
NOT_LINEAR = [dict(output=r"(.*encoder\.layers\.\d+)\.final_layer_norm", input=r"\1.fc1")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(granularity="huge"), r"VLPetConfig: granularity must be one of .*'large'.*got 'huge'"),
        (dict(decoder_granularity="huge"), "granularity must be one of"),
        (dict(design="across"), "design must be one of 'down'.*got 'across'"),
        (dict(modification="lora"), "modification must be one of"),
        (dict(init="ones"), "init must be one of"),
        (dict(preset="gpt"), "preset must be one of 'auto', 'bart', 't5', 't5gemma2', 'decoder', got 'gpt'"),
        (dict(encoder_sites=[dict(path="fc2")]), "every entry of encoder_sites is a dict with 'output'"),
        (dict(decoder_sites=[dict(output="(v")]), r"output '\(v' in decoder_sites is no pattern: missing \)"),
        (dict(heads=5), "heads must divide rank for design='down', got heads=5, rank=96"),
        (dict(rank=9, heads=3, design="up"), "heads must divide features"),
        (dict(rank=9, heads=3, modification="phm"), "order must divide both widths"),
        (dict(preset="t5"), r"no module of BartForConditionalGeneration matches the encoder pattern .*SelfAttention.*"),
        (dict(preset="t5"), r"its linear layers are model\.encoder\.layers\.\*\.self_attn\.k_proj"),
        (dict(encoder_sites=[], decoder_value=False), "nothing to adapt"),
        (dict(encoder_sites=NO_TAP), "needs the encoder_sites entry 'input', which is not given"),
        (dict(encoder_sites=WRONG_TAP), "'input', which is 'model.encoder.layers.0.fc3', not in the model"),
        (dict(encoder_sites=NO_GROUP), r"input '.*' in encoder_sites does not fit the pattern '.*fc2': "),
        (dict(decoder_sites=[dict(output="(?P<a>v)(?P<a>w")]), r"in decoder_sites is no pattern: "),
        (dict(encoder_sites=TWICE), "two entries of encoder_sites and decoder_sites match"),
        (dict(encoder_sites=NOT_LINEAR), "must be a linear layer, got LayerNorm"),
        (dict(granularity="small", mask_padding=True, encoder_sites=TWICE[:1]), "entry 'mask', which is not given"),
        (dict(modules_to_save=["fc2"]), "fc2 belongs to a site and to modules_to_save"),
        (dict(modules_to_save=["self_attn"]), "belongs to a site and to modules_to_save"),
    ],
)
def test_mistakes_are_named_and_leave_model_and_configuration_alone(options, message):
    host = make_host("bart")
    before = [name for name, _ in host.named_modules()]
    config = None
    with pytest.raises(UserError, match=message):
        config = VLPetConfig(**options)
        state = dict(vars(config))
        get_peft_model(host, config)
    assert [name for name, _ in host.named_modules()] == before and not hasattr(host, "peft_config")
    assert config is None or {k: v for k, v in vars(config).items() if k != "base_model_name_or_path"} == {
        k: v for k, v in state.items() if k != "base_model_name_or_path"
    }


def test_adapters_of_one_site_agree_on_its_input():
    model = tuned("bart")
    other = [dict(output=r"(.*encoder\.layers\.\d+)\.fc2", input=r"\1.self_attn_layer_norm")]
    with pytest.raises(UserError, match=r"another adapter at .*0\.fc2 has .*0\.fc1 for its input; give the same one"):
        model.add_adapter("second", VLPetConfig(encoder_sites=other))
    assert list(model.peft_config) == ["default"]


def test_unknown_model_type_and_missing_encoder_are_named():
    linear = torch.nn.Sequential(torch.nn.Linear(4, 4))
    known = "bart, vl_bart, florence2, t5, vl_t5, t5gemma2"
    with pytest.raises(UserError, match=f"knows the model types {known}, not 'custom'"):
        get_peft_model(linear, VLPetConfig())
    sites = [dict(output="0")]
    with pytest.raises(UserError, match=r"train_encoder_norms=True needs a model with get_encoder\(\)"):
        get_peft_model(linear, VLPetConfig(preset="bart", granularity="none", encoder_sites=sites, decoder_value=False))


def test_a_site_that_gets_no_input_says_so():
    model = tuned("bart")
    site = model.base_model.model.model.encoder.layers[0].fc2
    with pytest.raises(UserError, match="at an encoder feed-forward output reads the sub-layer's input X"):
        site(torch.randn(1, 3, 48))
    needs_none = tuned("bart", granularity="middleY").base_model.model.model.encoder.layers[0].fc2
    assert not needs_none.tap_paths and needs_none(torch.randn(1, 3, 48)).shape == (1, 3, WIDTH)


def test_a_configuration_made_for_one_model_is_not_used_for_another():
    config = VLPetConfig(rank=8, decoder_rank=4)
    get_peft_model(make_host("bart"), config)
    get_peft_model(make_host("bart", seed=5), config)
    with pytest.raises(UserError, match=r"made for another model: .*'encoder': 4.*this one has .*'encoder': 6"):
        get_peft_model(make_host("bart", encoder_layers=3), config)
