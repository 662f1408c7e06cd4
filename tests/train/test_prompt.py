"""The baseline prompt tuning: learnt tokens in the encoder's input."""

import pytest
import torch

from petx import baselines, hosts
from petx.baselines._sizes import counts
from petx.errors import UserError
from petx.train import vlpet
from petx.train.vlpet import arguments
from tests.fixtures import image_text, tiny_hosts

SETTINGS = arguments.checked({"steps": 1, "arms": ["prompt"], "prompt_tokens": 3, "prompt_hidden": 5})


def built(kind):
    host = hosts.find(kind)
    torch.manual_seed(0)
    return host, baselines.find("prompt", "vlpet").build(host, tiny_hosts.make_host(kind), SETTINGS)


@pytest.mark.parametrize("kind", ["vl_bart", "vl_t5"])
def test_the_encoder_reads_text_prompt_and_vision(kind):
    host, model = built(kind)
    batch = tiny_hosts.batch(kind)
    counted = counts(host, model)
    assert counted["trainable"] - counted["projector"] == 3 * 32 + (32 * 5 + 5) + (5 * 32 + 32)
    output, mask = model._encode(batch["input_ids"], batch["attention_mask"], batch["visual_features"])
    assert output.last_hidden_state.shape == (2, 7 + 3 + 5, 32)
    assert mask.tolist() == [[1] * 15, [1] * 4 + [0] * 3 + [1] * 8]
    loss = model(**batch).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.soft_prompt.parameters())


def test_generating_reads_the_prompt():
    _, model = built("vl_bart")
    batch = tiny_hosts.batch("vl_bart")
    batch.pop("labels")
    tokens = model.generate(**batch, max_new_tokens=4, num_beams=2)
    with torch.no_grad():
        torch.nn.init.normal_(model.soft_prompt.mlp[2].weight, std=30)
        torch.nn.init.normal_(model.soft_prompt.mlp[2].bias, std=30)
    assert len(tokens) == 2 and not torch.equal(tokens, model.generate(**batch, max_new_tokens=4, num_beams=2))


@pytest.mark.slow
def test_it_is_trained_beside_the_others(own, tmp_path):
    more = dict(prompt_tokens=4, prompt_hidden=8)
    assert vlpet.run(image_text.settings(own, tmp_path, arms=["prompt"], epochs=1, num_beams=1, **more)) == 0
    assert "| prompt tuning (4 tokens) |" in (tmp_path / "results.md").read_text()


def test_no_tokens_are_refused():
    with pytest.raises(UserError, match="prompt_tokens must be at least 1, got 0"):
        arguments.checked({"steps": 1, "arms": ["prompt"], "prompt_tokens": 0})


def test_without_an_image_there_is_no_place_for_it():
    _, model = built("vl_t5")
    batch = tiny_hosts.batch("t5")
    with pytest.raises(UserError, match="soft_prompt stands between text and vision and needs visual_features"):
        model(**batch)
    model.soft_prompt = None
    assert torch.isfinite(model(**batch).loss)


def test_a_mask_is_only_made_if_one_was_given():
    _, model = built("vl_bart")
    batch = tiny_hosts.batch("vl_bart", padded=False)
    output, mask = model._encode(batch["input_ids"], None, batch["visual_features"])
    assert output.last_hidden_state.shape == (2, 7 + 3 + 5, 32) and mask is None
