"""Every choice of VL-PET's paper is a setting of ``petx train vlpet``: it reaches the tuner, and bad ones are named."""

import json

import pytest

from petx import baselines, hosts
from petx.cli import main as petx
from petx.errors import UserError
from petx.train import stages, vlpet
from petx.train.vlpet import arguments
from petx.tuners.vlpet.layer import VLPetLayer
from tests.fixtures import image_text, tiny_hosts
from tests.fixtures.tiny_hosts import WIDTH, layers

SMALL = {"steps": 1, "rank": 8, "gate_rank": 4, "decoder_rank": 4, "heads": 4}
SITES = {  # per layer of a tiny host: the last parts of the adapted linears
    "vl_bart": {"attention": "self_attn.out_proj", "feed-forward": "fc2", "value": "v_proj", "key": "k_proj"},
    "vl_t5": {"attention": "SelfAttention.o", "feed-forward": "wo", "value": "Attention.v", "key": "Attention.k"},
}


def built(kind, **choices):
    settings = arguments.checked(SMALL | choices)
    return baselines.find("vlpet", "vlpet").build(hosts.find(kind), tiny_hosts.make_host(kind), settings)


def trained(model, part):
    named = model.named_parameters()
    return sum(p.numel() for name, p in named if p.requires_grad and part in name and "original_module" not in name)


@pytest.mark.parametrize("kind", list(SITES))
@pytest.mark.parametrize(
    "encoder, decoder",
    [
        (["attention", "feed-forward"], ["value"]),
        (["attention"], ["value"]),
        (["feed-forward"], []),
        ([], ["value"]),
        ([], ["key"]),
        (["attention"], ["key", "value"]),
    ],
)
def test_places(kind, encoder, decoder):
    model = built(kind, encoder_places=encoder, decoder_places=decoder)
    paths = [path for path, module in model.named_modules() if isinstance(module, VLPetLayer)]
    for place, end in SITES[kind].items():
        assert sum(path.endswith(end) for path in paths) == (2 if place in encoder + decoder else 0), (place, paths)
    assert len(paths) == 2 * len(encoder + decoder)


def test_sizes_by_hand():
    d, r = WIDTH, 8
    down, up = r * d + r, r * d + d
    sites = 2 * 2  # two encoder layers of two
    gates = {"large": 4 * d + 4 + 4 * d + d, "middleX": d + 1, "middleY": d, "small": 2 * d + 1, "none": 0}
    for level, gate in gates.items():
        model = built("vl_bart", level=level, decoder_places=[])
        assert trained(model, "vlpet_adapter") == sites * (down + up + gate), level
    pair = built("vl_bart", level="none", design="down-up-pair", heads=2, decoder_places=[])
    assert trained(pair, "vlpet_adapter") == sites * (down + d * r // 2 + d)
    bare = built("vl_bart", level="none", use_bias=False, decoder_places=[])
    assert trained(bare, "vlpet_adapter") == sites * 2 * r * d
    values = built("vl_bart", level="none", encoder_places=[])
    assert trained(values, "vlpet_adapter") == 2 * (4 * d + 4 + 4 * d + d)
    gated = built("vl_bart", level="none", encoder_places=[], decoder_level="middleY")
    assert trained(gated, "vlpet_adapter") == trained(values, "vlpet_adapter") + 2 * d
    norms = {(True, False): 5, (False, True): 7, (False, False): 0}  # of 2 d; two layers of 2 or 3, the embeddings'
    for (encoder, decoder), count in norms.items():
        model = built("vl_bart", train_encoder_norms=encoder, train_decoder_norms=decoder)
        assert trained(model, "layer_norm") + trained(model, "layernorm") == count * 2 * d, (encoder, decoder)


@pytest.mark.parametrize(
    "choices",
    [
        dict(placement="parallel"),
        dict(level="middleX", gate_input="original"),
        dict(level="middleY", middle_y="sigmoid"),
        dict(level="small", mask_padding=True),
        dict(activation="gelu"),
        dict(design="down-up"),
    ],
)
def test_a_choice_reaches_every_module(choices):
    model = built("vl_bart", **choices)
    names = {"level": "granularity"}
    for layer in layers(model):
        for name, value in choices.items():
            if name == "mask_padding":
                assert layer._masked == ({"default"} if layer.kind.startswith("encoder") else set())
            elif layer.kind.startswith("encoder"):
                assert getattr(layer.vlpet_adapter["default"], names.get(name, name)) == value
            elif name == "activation":
                assert layer.vlpet_adapter["default"].activation == value


@pytest.mark.slow
@pytest.mark.parametrize(
    "choices",
    [
        dict(level="none", design="down-up-pair", decoder_places=["value", "key"], decoder_level="small"),
        dict(level="middleX", gate_input="original", placement="parallel", encoder_places=["attention"]),
    ],
)
def test_they_train_and_load_again(own, tmp_path, choices):
    settings = image_text.settings(own, tmp_path, arms=["vlpet"], epochs=1, num_beams=1, **choices)
    assert vlpet.run(settings) == 0  # and what was saved gave the same score in a fresh model
    config = json.loads((tmp_path / "vlpet" / "seed-42" / "tuned" / "adapter_config.json").read_text())
    assert config["granularity"] == choices["level"]
    assert f"| VL-PET-{choices['level']} |" in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize(
    "command, message",
    [
        ("--design across", "design must be one of down, up, down-up, down-up-pair; got 'across'"),
        ("--encoder_places attention,ffn", "encoder_places must be of attention, feed-forward; got 'ffn'"),
        ("--decoder_places query", "decoder_places must be of value, key; got 'query'"),
        ("--encoder_places [] --decoder_places []", "encoder_places and decoder_places are both empty"),
        ("--decoder_places [] --decoder_level small", "decoder_level=small needs decoder_places, which is empty"),
        ("--gate_input original", "gate_input=original is for level middleX and small, got level=large"),
        ("--middle_y sigmoid --level small", "middle_y=sigmoid is for level middleY, got level=small"),
        ("--mask_padding true", "mask_padding=True is for level small, got level=large"),
        ("--use_bias perhaps", "use_bias must be bool, got 'perhaps'"),
        ("--gate_rank 0", "gate_rank must be at least 1, got 0"),
        ("--decoder_rank 0", "decoder_rank must be at least 1, got 0"),
        ("--design up --heads 3", "heads must divide features for design='up', got heads=3, features=128"),
    ],
)
def test_bad_choices_are_named_before_any_work(petx_cache, tmp_path, capsys, monkeypatch, command, message):
    monkeypatch.setenv("PETX_CACHE", str(petx_cache))
    monkeypatch.chdir(tmp_path)
    assert petx(["train", "vlpet", *command.split()]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_heads_must_fit_a_given_host_too(own, tmp_path):
    settings = image_text.settings(own, tmp_path / "out", design="up", heads=3)
    with pytest.raises(UserError, match="VL-PET on a host of width 16: .*heads must divide features"):
        vlpet.run(settings)
    assert not (tmp_path / "out").exists()


def test_a_run_of_an_older_petx_is_resumed():
    """Its settings lack the later ones, which were at their defaults, lists included."""
    settings = arguments.checked({"steps": 1})
    assert stages.changed({"steps": 1}, settings) == []
    other = arguments.checked({"steps": 1, "decoder_places": [], "heads": 2, "rank": 10})
    assert [name for name, _, _ in stages.changed({"steps": 1, "heads": 2}, other)] == ["rank", "decoder_places"]
