"""Merging, folding and unloading VL-PET adapters: what algebra allows, exactly, and a reason where it does not."""

import pytest
import torch
from peft import PeftModel, get_peft_model

from petx.tuners import VLPetConfig
from tests.fixtures.tiny_hosts import layers, logits, tuned

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def zero_up(model):
    with torch.no_grad():
        for layer in layers(model):
            layer.vlpet_adapter.default.up.weight.zero_()
    return model


@pytest.mark.parametrize("kind", ["bart", "t5"])
@pytest.mark.parametrize("granularity", ["middleY", "none"])
def test_affine_adapters_merge_exactly_and_unmerge_bit_for_bit(kind, granularity):
    model = zero_up(tuned(kind, granularity=granularity))
    wanted = logits(model, kind)
    model.base_model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(model, kind), wanted)
    assert all(layer.merged for layer in layers(model))
    model.base_model.unmerge_adapter()
    assert torch.equal(logits(model, kind), wanted)
    model.add_adapter("second", VLPetConfig(granularity="none", zero_init_up=True))
    with pytest.raises(ValueError, match="one adapter at a time can be active or merged"):
        model.base_model.merge_adapter(["default", "second"])
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged, kind), wanted)
    assert not layers(merged) and not any(module._forward_pre_hooks for module in merged.modules())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            dict(granularity="large"),
            "at model.encoder.layers.0.self_attn.out_proj, its large gate depends on the input",
        ),
        (dict(granularity="small"), "its small gate depends on the input"),
        (dict(granularity="middleX"), "its middleX gate depends on the input"),
        (dict(granularity="middleY"), "ΔH = .* is not linear in the input, and its up weights are not zero"),
        (dict(granularity="none"), "is not linear in the input"),
    ],
)
def test_what_cannot_merge_says_why_and_stays(options, reason):
    model = tuned("bart", **options)
    wanted = logits(model, "bart")
    for merge in (model.merge_and_unload, model.base_model.merge_adapter):
        with pytest.raises(ValueError, match=reason):
            merge()
    assert torch.equal(logits(model, "bart"), wanted) and len(layers(model)) == 6


def test_unload_removes_sites_and_taps():
    model = tuned("t5", granularity="small", mask_padding=True)
    assert sum(len(module._forward_pre_hooks) for module in model.modules()) == 8 + 2  # a tap each, a lock a stack
    host = model.unload()
    assert not layers(host) and not any(module._forward_pre_hooks for module in host.modules())
    get_peft_model(host, VLPetConfig())


@pytest.mark.parametrize(
    "options",
    [
        dict(granularity="middleY"),
        dict(granularity="middleY", middle_y="sigmoid", design="down-up-pair", scale=0.3),
        dict(granularity="middleY", placement="parallel", use_bias=False),
        dict(granularity="middleY", decoder_granularity="middleY"),
        dict(granularity="none", scale=0.5),
    ],
)
@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_folding_the_gate_keeps_the_outputs(kind, options, tmp_path):
    model = tuned(kind, spread=0.1, **options)
    wanted = logits(model, kind)
    model.base_model.fold_gate()
    torch.testing.assert_close(logits(model, kind), wanted, rtol=1e-4, atol=1e-4)
    sites = [layer.vlpet_adapter.default for layer in layers(model)]
    assert all((site.granularity, site.scale) == ("none", 1.0) for site in sites)
    model.save_pretrained(tmp_path / "adapter")
    host = model.unload()
    loaded = PeftModel.from_pretrained(host, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(loaded, kind), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(granularity="large"), "the large gate depends on the input"),
        (dict(granularity="middleY", modification="phm"), "modification='phm' cannot be scaled by channel"),
        (dict(granularity="middleY", scale=0.0), "has a gate that is zero or not finite"),
    ],
)
def test_folding_refuses_what_it_cannot_do(options, reason):
    model = tuned("bart", **options)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=reason):
        model.base_model.fold_gate()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_folding_refuses_a_shared_host():
    model = tuned("bart", granularity="middleY")
    model.add_adapter("second", VLPetConfig(rank=6, heads=2))
    with pytest.raises(ValueError, match=r"fold_gate changes the frozen model, which .*'second'.* share"):
        model.base_model.fold_gate()
