"""The baseline HyperFormer: adapters that a network makes of the task and the layer."""

import copy

import pytest
import torch
from torch import nn

from petx import baselines, hosts
from petx.errors import UserError
from petx.train import vlpet
from petx.train.vlpet import arguments
from tests.fixtures import image_text, tiny_hosts

SMALL = dict(adapter_rank=4, hyperformer_embedding=6, hyperformer_hidden=5, hyperformer_projected=3)
TASKS = ["vqa", "gqa"]
PLACES = {
    "vl_bart": ("self_attn.out_proj", "encoder_attn.out_proj", "fc2"),
    "vl_t5": ("SelfAttention.o", "EncDecAttention.o", "wo"),
}


def built(kind="vl_bart", **more):
    settings = arguments.checked({"steps": 1, "arms": ["hyperformer"]} | SMALL | more)
    settings.tasks = TASKS  # of other data than easy-VQA, which the tiny hosts never see
    torch.manual_seed(3)
    return baselines.find("hyperformer", "vlpet").build(hosts.find(kind), tiny_hosts.make_host(kind), settings)


def by_hand(adapters, task, stack, layer, place, h):
    made = adapters.stacks[stack]
    both = torch.cat([adapters.embedding[TASKS.index(task)], made.layers.weight[layer]])
    first, _, second = made.project
    inner = torch.relu(first.weight @ both + first.bias)
    z = nn.functional.layer_norm(second.weight @ inner + second.bias, (3,), made.norm.weight, made.norm.bias, 1e-6)
    makers = [made.places[place][name] for name in ("down", "down_bias", "up", "up_bias")]
    down, down_bias, up, up_bias = (one.weight @ z + one.bias for one in makers)
    inner = nn.functional.gelu(h @ down.view(4, -1).T + down_bias, approximate="tanh")
    return h + inner @ up.view(-1, 4).T + up_bias


@pytest.mark.parametrize("kind", PLACES)
def test_an_adapter_of_task_and_layer_behind_every_sub_layer(kind):
    model, plain = built(kind), tiny_hosts.make_host(kind)
    with torch.no_grad():
        for parameter in model.task_adapters.parameters():
            parameter.normal_(std=0.3)
    batch = tiny_hosts.batch(kind)

    def behind(name):
        layer = int(name.split(".")[3] if name.startswith("model.") else name.split(".")[2])
        stack = "encoder" if ".encoder." in f".{name}" else "decoder"
        place = ("self", "cross", "feed-forward")[next(i for i, end in enumerate(PLACES[kind]) if name.endswith(end))]
        return lambda module, inputs, h: by_hand(model.task_adapters, "gqa", stack, layer, place, h)

    names = [name for name, _ in plain.named_modules() if name.endswith(PLACES[kind])]
    assert len(names) == 2 * 2 + 2 * 3
    for name in names:
        plain.get_submodule(name).register_forward_hook(behind(name))
    with torch.no_grad():
        wanted, got = plain(**batch).logits, model(**batch, task="gqa").logits
        assert torch.allclose(got, wanted, atol=1e-5)
        assert not torch.allclose(model(**batch, task="vqa").logits, wanted, atol=1e-2)
        with pytest.raises(UserError, match="task 'nlvr' has no adapters; it was trained on vqa, gqa"):
            model(**batch, task="nlvr")
        with pytest.raises(UserError, match="task_adapters make adapters of the batch's task, got task=None"):
            model(**batch)
        copied = copy.deepcopy(model)  # with adapters of its own
        nn.init.zeros_(model.task_adapters.embedding)
        assert torch.equal(copied(**batch, task="gqa").logits, got)


def test_all_that_is_trained_learns_and_generating_is_of_the_task():
    model, batch = built(), tiny_hosts.batch("vl_bart")
    norms = [name for name, _ in tiny_hosts.make_host("vl_bart").named_modules() if "norm" in name.lower()]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    begins = ("task_adapters.", "visual_embedding.", *(f"{name}." for name in norms))
    assert trained == {name for name, _ in model.named_parameters() if name.startswith(begins)}
    model(**batch, task="vqa").loss.backward()
    adapters = [parameter for parameter in model.task_adapters.parameters()]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapters)
    assert model.task_adapters.embedding.grad[1].abs().sum() == 0  # the other task's
    with torch.no_grad():
        for parameter in adapters:
            parameter.normal_(std=2)
    del batch["labels"]
    asked = {task: model.generate(**batch, task=task, max_new_tokens=6, num_beams=2) for task in TASKS}
    assert not torch.equal(asked["vqa"], asked["gqa"])
    assert torch.equal(asked["vqa"], model.generate(**batch, task="vqa", max_new_tokens=6, num_beams=2))


@pytest.mark.parametrize(
    "given, said",
    [
        (dict(tasks=["yes-no", "caption"]), "easy-vqa scores tasks=.* as one task; leave tasks out"),
        (dict(data="openmoji"), "and retrieval ranks"),
        (dict(hyperformer_embedding=0), "hyperformer_embedding must be at least 1, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        arguments.checked({"steps": 1, "arms": ["hyperformer"]} | given)


def test_a_host_that_is_not_told_the_task_is_refused():
    florence, misfit = hosts.find("florence2"), baselines.find("hyperformer", "vlpet").misfit
    assert misfit(florence) == "batches that tell their task" and misfit(hosts.find("vl_t5")) is None


@pytest.mark.slow
def test_it_is_trained_beside_the_others(own, tmp_path):
    settings = image_text.settings(own, tmp_path, arms=["hyperformer"], epochs=1, num_beams=1, **SMALL)
    assert vlpet.run(settings) == 0  # and what was saved gave the same score in a fresh model
    assert "| HyperFormer (bottleneck 4) |" in (tmp_path / "results.md").read_text()
