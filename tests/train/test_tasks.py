"""Tokenizer, tasks, batches and their order."""

import random

import pytest
import torch
from transformers import AutoTokenizer, BartConfig

from petx import hosts
from petx.data import features
from petx.data.batches import RoundRobinBatches
from petx.data.examples import Example
from petx.data.stores import ArrayFeatures
from petx.data.task import Task
from petx.data.tokenizers import word_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(["vqa: is there a red shape? yes no"], visual_tokens=4)


def test_tokenizer_keeps_the_last_rows_for_vision(tokenizer, tmp_path):
    ids = tokenizer("VQA: is there a blue shape?")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == "vqa : is there a <unk> shape ? </s>".split()
    last = tokenizer.convert_ids_to_tokens([len(tokenizer) - 1 - i for i in range(4)])
    assert last == [f"<vis_extra_id_{i}>" for i in range(4)]
    tokenizer.save_pretrained(tmp_path)
    text = "is there a red shape?"
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == tokenizer(text)["input_ids"]


def make_task(tokenizer, examples, **options):
    array = torch.arange(2 * 4 * 3, dtype=torch.float32).reshape(2, 4, 3)
    store = ArrayFeatures(array, ["first", "second"], features.grid_boxes(2))
    return Task("vqa", examples, store, tokenizer, max_target=4, **({"metric": "exact"} | options))


def test_answers_are_sampled_by_score_and_weigh_so(tokenizer):
    example = Example("is there a red shape?", ("first",), (("yes", 0.9), ("no", 0.3)))
    task = make_task(tokenizer, [example])
    drawn = [task[0, epoch] for epoch in range(400)]
    words = [tokenizer.decode(item["labels"], skip_special_tokens=True) for item in drawn]
    assert 0.68 < words.count("yes") / 400 < 0.82  # 0.75 wanted
    assert {(word, item["weight"]) for word, item in zip(words, drawn, strict=True)} == {("yes", 0.9), ("no", 0.3)}
    again = [tokenizer.decode(task[0, epoch]["labels"], skip_special_tokens=True) for epoch in range(400)]
    assert again == words
    unsure = make_task(tokenizer, [Example("is there?", ("first",), (("yes", 0.0), ("no", 0.0)))])
    assert unsure[0]["weight"] == 0.0


def test_collator_pads_and_shifts(tokenizer):
    examples = [
        Example("is there a red shape?", ("first",), (("yes", 1.0),)),
        Example("is there?", ("second",), (("no red shape", 1.0),)),
    ]
    task = make_task(tokenizer, examples)
    batch = hosts.find("vl_bart")(BartConfig(decoder_start_token_id=0), tokenizer).collate([task[0], task[1]])
    yes, no, red, shape, end = tokenizer.convert_tokens_to_ids(["yes", "no", "red", "shape", "</s>"])
    assert batch["labels"].tolist() == [[yes, end, -100, -100], [no, red, shape, end]]
    assert batch["decoder_input_ids"].tolist() == [[0, yes, end, 1], [0, no, red, shape]]
    assert batch["attention_mask"].sum(1).tolist() == [7, 4]
    assert (batch["input_ids"] == tokenizer.pad_token_id).sum(1).tolist() == [0, 3]
    assert batch["visual_features"].shape == (2, 4, 3) and batch["boxes"].shape == (2, 4, 4)
    assert torch.equal(batch["visual_features"][1], task.features.features[1])


def test_two_images_are_told_apart(tokenizer):
    item = make_task(tokenizer, [Example("is there?", ("first", "second"), (("yes", 1.0),))])[0]
    assert item["visual_features"].shape == (8, 3) and item["image_ids"].tolist() == [0] * 4 + [1] * 4


def test_scores_by_kind(tokenizer):
    given = [("red", "colour"), ("yes", "yes/no"), ("no", "yes/no")]
    examples = [Example("", (), ((answer, 1.0),), kind=kind) for answer, kind in given]
    scores = make_task(tokenizer, examples).score(["red", "yes", "yes"])
    assert scores == pytest.approx({"accuracy": 200 / 3, "colour": 100.0, "yes/no": 50.0})
    assert next(iter(scores)) == "accuracy"


def test_an_epoch_is_every_example_once_one_task_a_batch():
    lengths, sizes = [10, 7], [4, 3]
    steps = RoundRobinBatches.epoch_steps(lengths, sizes)
    assert steps == 3 + 3
    batches = list(RoundRobinBatches(lengths, sizes, steps=2 * steps, seed=5))
    assert all(len({task for task, _, _ in batch}) == 1 for batch in batches)
    everything = sorted((task, index) for task, length in enumerate(lengths) for index in range(length))
    for epoch in range(2):
        keys = [key for batch in batches[epoch * steps : (epoch + 1) * steps] for key in batch]
        assert sorted((task, index) for task, index, _ in keys) == everything
        assert {draw for _, _, draw in keys} == {f"5 {epoch}"}
    assert batches[:steps] != batches[steps:]
    assert batches == list(RoundRobinBatches(lengths, sizes, steps=2 * steps, seed=5))
    assert batches != list(RoundRobinBatches(lengths, sizes, steps=2 * steps, seed=6))
    order = [batch[0][0] for batch in batches]
    assert order != sorted(order)  # the tasks alternate


def test_processes_share_each_batch():
    whole = list(RoundRobinBatches([10], [4], steps=3, seed=0))
    shares = [list(RoundRobinBatches([10], [4], steps=3, seed=0, rank=r, processes=3)) for r in range(3)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert len({len(part) for part in parts}) == 1  # equally many, so that gradients average rightly
        assert {key for part in parts for key in part} == set(batch)


def test_order_of_batches_ignores_global_random_state():
    random.seed(1)
    first = list(RoundRobinBatches([9], [2], steps=5, seed=0))
    random.seed(2)
    torch.manual_seed(2)
    assert list(RoundRobinBatches([9], [2], steps=5, seed=0)) == first
