"""Few-shot learning and several tasks at once: which examples are trained on, of files of one's own and of easy-VQA."""

import dataclasses
import json

import pytest
import torch

from petx import studies, tasks
from petx.cli import main as petx
from petx.data.examples import Example, drawn
from petx.data.stores import ArrayFeatures
from petx.errors import UserError
from petx.tasks import easy_vqa
from petx.tasks.easy_vqa import EasyVQA, Question
from petx.train import vlpet
from petx.train.run import Run
from petx.train.vlpet import arguments
from tests.fixtures import image_text

EXAMPLES = [Example(str(i), (), ()) for i in range(40)]


def texts(examples):
    return [example.text for example in examples]


def test_fewer_are_among_more_and_the_seed_decides():
    four, ten = (texts(drawn(EXAMPLES, count, 0, "vqa")) for count in (4, 10))
    assert len(four) == 4 and len(ten) == 10 and set(four) < set(ten)
    assert four == sorted(four, key=int) == texts(drawn(EXAMPLES, 4, 0, "vqa"))
    assert four != texts(drawn(EXAMPLES, 4, 1, "vqa")) and four != texts(drawn(EXAMPLES, 4, 0, "gqa"))
    assert drawn(EXAMPLES, None, 0, "vqa") == drawn(EXAMPLES, 40, 0, "vqa") == EXAMPLES
    with pytest.raises(UserError, match="few_shot must be at most the 40 examples of task vqa, got 41"):
        drawn(EXAMPLES, 41, 0, "vqa")


def loaded(settings):
    run = Run(vlpet.RECIPE, settings)
    run.prepare()
    return run.load_data()


def test_each_task_of_own_files_is_cut_and_only_in_training(own, tmp_path):
    data = loaded(image_text.settings(own, tmp_path, few_shot=4))
    assert [len(task) for task in data.train] == [4] * 4
    assert [len(task) for task in data.test] == [10, 8, 6, 3]
    other = loaded(image_text.settings(own, tmp_path, few_shot=4, seed=1))
    assert texts(data.train[0].examples) == texts(other.train[0].examples)  # one question
    assert [one.images for one in data.train[0].examples] != [one.images for one in other.train[0].examples]


def test_as_many_as_there_are_not_are_refused_before_any_work(own, tmp_path):
    with pytest.raises(UserError, match="few_shot must be at most the 6 examples of task nlvr, got 7"):
        vlpet.run(image_text.settings(own, tmp_path / "out", few_shot=7))
    assert not list((tmp_path / "out").glob("*"))
    with pytest.raises(UserError, match="few_shot must be at least 1, got 0"):
        arguments.checked({"steps": 1, "few_shot": 0})


QUESTIONS = [
    Question("is it red?", "yes", "1.png"),
    Question("is it blue?", "no", "1.png"),
    Question("what color is the circle?", "red", "1.png"),
    Question("what shape is there?", "circle", "1.png"),
]


@pytest.fixture
def small(monkeypatch):
    """easy-VQA of four questions on one picture."""
    features = ArrayFeatures(torch.randn(1, 4, 8), ["1.png"], torch.zeros(4, 4))
    monkeypatch.setattr(easy_vqa, "read", lambda settings: EasyVQA(features, QUESTIONS, QUESTIONS[:1], QUESTIONS))


@pytest.mark.parametrize("method", ["vlpet", "petal"])
def test_parts_of_easy_vqa_are_tasks_and_all_of_it_is_scored(small, method):
    from petx import hosts
    from petx.train import recipes

    recipe = recipes.find(method)
    host = hosts.find(recipe.small_host)
    names = ["yes-no", "colour", "shape", "caption"]
    settings = recipe.settings(steps=1, tasks=names)
    data = tasks.source("easy-vqa").load(settings, host)
    assert [task.name for task in data.train] == names
    assert [texts(task.examples) for task in data.train] == [
        ["is it red?", "is it blue?"],
        ["what color is the circle?"],
        ["what shape is there?"],
        [""],
    ]
    assert data.train[3].examples[0].answers == (("a red circle", 1.0),)
    whole = tasks.source("easy-vqa").load(dataclasses.replace(settings, tasks=[], few_shot=3), host)
    for one in (data, whole):
        assert [(task.name, len(task)) for task in one.test] == [("vqa", 4)]
    assert [(task.name, len(task)) for task in whole.train] == [("vqa", 3)]
    vocabularies = [getattr(one.tokenizer, "text", one.tokenizer).get_vocab() for one in (data, whole)]
    assert vocabularies[0] == vocabularies[1]
    for one, other in zip(data.pretraining, whole.pretraining, strict=True):  # the small host is pretrained on all
        assert one.examples == other.examples != []
    for one, other in zip(data.feature_stats, whole.feature_stats, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "names, message",
    [
        (
            ["yes-no", "size"],
            "tasks has the unknown part 'size' of easy-vqa; there are: yes-no, colour, shape, caption",
        ),
        (["colour", "colour"], "tasks names twice 'colour' of easy-vqa"),
    ],
)
def test_unknown_parts_are_refused(names, message):
    with pytest.raises(UserError, match=message):
        tasks.source("easy-vqa").check(arguments.checked({"steps": 1, "tasks": names}))


@pytest.mark.parametrize("name, cells", [("few-shot", 5), ("number-of-tasks", 4)])
def test_the_studies_differ_in_nothing_that_a_small_host_depends_on(name, cells):
    from petx.studies.running import _shared_hosts

    for study in (studies.read(name), studies.read(f"petal-{name}")):
        assert len(study.cells) == cells and study.seeds == [0, 1, 2] and len(_shared_hosts(study)) == 1


@pytest.mark.slow
def test_four_tasks_of_a_few_examples_from_the_command_line(petx_cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PETX_CACHE", str(petx_cache))
    sizes = "--train_images 60 --dev_images 12 --test_images 12 --width 32 --ffn 32 --layers 1 --rank 8 --host_steps 4"
    command = [
        "train",
        "vlpet",
        "--preset",
        "smoke",
        *sizes.split(),
        "--steps",
        "4",
        "--arms",
        "vlpet",
        "--few_shot",
        "8",
    ]
    command += ["--tasks", "yes-no,colour,shape,caption", "--output_dir", str(tmp_path / "out")]
    assert petx([*command, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "yes-no: 8 examples to train on; batches of 32, 1 an epoch, not scored by itself" in shown
    assert "task      vqa: scored alone, " in shown
    assert petx(command) == 0
    test = json.loads((tmp_path / "out" / "results.json").read_text())["arms"]["vlpet"][0]["test"]
    assert {"accuracy", "yes/no", "colour", "shape"} <= test.keys()
