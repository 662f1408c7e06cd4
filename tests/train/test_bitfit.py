"""The baseline BitFit: biases alone are trained, on both methods' hosts."""

import pytest
import torch

from petx import baselines, hosts
from petx.baselines._sizes import counts
from petx.errors import UserError
from petx.train import vlpet
from tests.fixtures import image_text, tiny_hosts, tiny_vlms


def test_bart_trains_its_biases_and_the_visual_embedding():
    model = baselines.find("bitfit", "vlpet").build(hosts.find("vl_bart"), tiny_hosts.make_host("vl_bart"), None)
    named = dict(model.named_parameters())
    trained = {name for name, parameter in named.items() if parameter.requires_grad}
    assert trained == {name for name in named if name.endswith("bias") or "visual_embedding" in name}
    # 3 linears and 1 out projection an attention, 2 an FFN (48 and 32), norms; (4 + 1 + 2) and (2 * 4 + 1 + 3) a layer
    encoder, decoder = (4 + 1 + 2) * 32 + 48, (8 + 1 + 3) * 32 + 48
    counted = counts(hosts.find("vl_bart"), model)
    assert counted["trainable"] - counted["projector"] == 2 * (encoder + decoder) + 2 * 32  # and two embedding norms


def test_the_q_former_trains_its_biases_alone():
    host, model = hosts.find("blip2"), tiny_vlms.make_vlm("blip2-t5")
    baselines.find("bitfit", "petal").build(host, model, None)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all(name.endswith("bias") for name in trained)
    assert {name.split(".")[0] for name in trained} == {"qformer", "language_projection"}


def test_it_is_trained_beside_the_others(own, tmp_path):
    settings = image_text.settings(own, tmp_path, arms=["bitfit"], epochs=1, num_beams=1)
    assert vlpet.run(settings) == 0  # and the saved biases gave the same score in a fresh model
    assert "| BitFit |" in (tmp_path / "results.md").read_text()


def test_a_host_without_biases_is_refused(own, tmp_path):
    host = tiny_hosts.make_host("t5")
    host.save_pretrained(tmp_path / "t5")
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(own / "bart").save_pretrained(tmp_path / "t5")
    settings = image_text.settings(own, tmp_path / "out", host=str(tmp_path / "t5"), arms=["bitfit"])
    with pytest.raises(UserError, match="arm bitfit needs biases in its layers, and T5 has none"):
        vlpet.run(settings)
    assert not (tmp_path / "out").exists() and torch.isfinite(host.shared.weight).all()
