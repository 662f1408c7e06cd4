"""Prediction files: written, read again, matched with their examples, and scored without a model."""

import dataclasses
import importlib.util
import json
import shutil
import sys
import types

import pytest

from petx import tasks
from petx.cli import main as petx
from petx.data import predictions
from petx.data.examples import Example
from petx.data.predictions import JsonList, JsonMapping, Nlvr2Csv, PredictionFile, ValueAnswers, ValueCaptions
from petx.errors import UserError
from petx.train import predicted
from petx.train.settings import checked
from petx.train.vlpet import arguments

CLIP = (("tv", "s01"),)


@pytest.mark.parametrize(
    "form, ids, texts, wanted",
    [
        (PredictionFile(), [None, None], ["a", "“ü”"], '{"id": 1, "image": "i.jpg", "question": "q", "answer": "“ü”"}'),
        (JsonList(), [7, 8], ["a", "b"], '"question_id": 8'),
        (JsonList("questionId", "prediction"), ["07", "8"], ["a", "b"], '"questionId": "07"'),
        (JsonMapping("direct_answer"), ["x", "y"], ["a", "b"], '"y": {'),
        (Nlvr2Csv(), ["dev-1-0-0", "dev-1-1-0"], ["true", "false"], "dev-1-1-0,False\n"),
        (Nlvr2Csv(), ['a,"b', " c"], ["true", "false"], '"a,""b",True\n c,False\n'),
        (ValueAnswers(), [5, 6], ["a3", ""], '"5": 3'),
        (ValueCaptions(), [5, 6], ["a", "b"], '{"vid_name": "s01", "clip_id": 6, "descs": [{"desc": "b"}]}\n'),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, PredictionFile) else "",
)
def test_every_format_gives_back_what_was_written(tmp_path, form, ids, texts, wanted):
    images = CLIP if isinstance(form, ValueCaptions) else ("i.jpg",)
    examples = [Example("q", images, (), id=name) for name in ids]
    path = tmp_path / f"test-x{form.suffix}"
    form.write(path, examples, texts)
    assert wanted in path.read_text(encoding="utf-8")
    assert form.matched(path, examples) == texts
    assert form.matched(path, examples[::-1]) == texts[::-1] or ids[0] is None


def test_ids_keep_their_type(tmp_path):
    examples = [Example("q", ("i",), (), id=name) for name in (458752000, "22MexNk")]
    JsonList().write(tmp_path / "a.json", examples, ["red", "blue"])
    rows = json.loads((tmp_path / "a.json").read_text())
    assert rows == [{"question_id": 458752000, "answer": "red"}, {"question_id": "22MexNk", "answer": "blue"}]


@pytest.mark.parametrize(
    "form, text, message",
    [
        (JsonList(), '[{"question_id": 1, "answer": "a"}]', "no prediction for 1 of 2 examples, such as id 2"),
        (JsonList(), '[{"question_id": 1, "answer": 3}]', r"a\.x: entry 0: answer must be text, got 3"),
        (JsonList(), '[{"answer": "a"}]', r"a\.x: entry 0 has no 'question_id'"),
        (JsonList(), json.dumps([{"question_id": 1, "answer": "a"}] * 2), r"a\.x: id 1 stands there twice"),
        (JsonList(), json.dumps([dict(question_id=i, answer="a") for i in (1, 2, 3)]), "1 ids that the split has not"),
        (JsonMapping("direct_answer"), '{"1": {"multiple_choice": "a"}}', r"entry 1 must be {direct_answer: text}"),
        (
            JsonMapping("direct_answer"),
            '{"1": {"direct_answer": "a"}, "1": {"direct_answer": "b"}}',
            "'1' stands there twice",
        ),
        (JsonMapping("direct_answer"), "[]", r"a\.x must hold a mapping, got list"),
        (Nlvr2Csv(), "1,True\n2,yes\n", r"line 2 must be identifier,True or identifier,False, got \['2', 'yes'\]"),
        (ValueAnswers(), '{"1": "a2"}', "entry 1 must be the number of an answer, got 'a2'"),
        (ValueCaptions(), '{"clip_id": 1, "descs": []}', "line 1: descs must be a list of texts"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, form, text, message):
    (tmp_path / "a.x").write_text(text)
    with pytest.raises(UserError, match=message):
        form.matched(tmp_path / "a.x", [Example("q", ("i",), (), id=name) for name in (1, 2)])


def test_examples_with_one_id_have_their_texts_in_order(tmp_path):
    """Then a run's own file can be scored; another's is taken if it has as many of each id as the split."""
    examples = [Example("q", ("i",), (), id=name) for name in ("x", 1, "x", "y")]
    for form in (PredictionFile(), JsonList(), Nlvr2Csv()):
        texts = ["true", "false", "false", "true"]
        form.write(tmp_path / "a", examples, texts)
        assert form.matched(tmp_path / "a", examples) == texts
        form.write(tmp_path / "a", examples[1:], texts[1:])
        with pytest.raises(UserError, match="no prediction for 1 of 4 examples, such as id x"):
            form.matched(tmp_path / "a", examples)
        form.write(tmp_path / "a", [*examples, examples[0]], [*texts, "true"])
        with pytest.raises(UserError, match="id x stands there 3 times, and the split has 2 of them"):
            form.matched(tmp_path / "a", examples)


@pytest.mark.parametrize("name", [1.5, True, "", [1], {}])
def test_an_id_that_could_not_be_read_again_is_refused(name):
    with pytest.raises(UserError, match="task vqa: the id of example 1 must be a name or a whole number, got "):
        JsonList().check("vqa", [Example("q", ("i",), (), id=one) for one in ("x", name)])


def test_one_id_twice_is_refused_where_there_is_room_for_one():
    twice = [Example("q", ("i",), (), id="x")] * 2
    JsonList().check("vqa", twice)
    with pytest.raises(UserError, match="task aokvqa: 2 examples have id x"):
        JsonMapping("direct_answer").check("aokvqa", twice)


def test_a_choice_is_written_as_it_stands():
    choices = ("red car", "blue bus", "tree")
    assert [predictions.chosen_of(text, choices) for text in ("tree", "Blue", "a red car")] == [
        "tree",
        "blue bus",
        "red car",
    ]
    assert predictions.chosen_of("anything", ()) == "anything"


# ---- petx score ----


@pytest.fixture
def answered(tmp_path):
    """Two questions of GQA with answers, and the same without; a file that gets one of them right."""
    rows = [
        {"question_id": str(i), "image": f"{i}.jpg", "question": "what?", "answer": answer}
        for i, answer in enumerate(("dog", "cat"))
    ]
    folder = tmp_path / "data" / "gqa" / "annotations"
    folder.mkdir(parents=True)
    (folder / "testdev_balanced_questions.json").write_text(json.dumps(rows))
    bare = [{name: value for name, value in row.items() if name != "answer"} for row in rows]
    (folder / "test_balanced_questions.json").write_text(json.dumps(bare))
    given = [{"questionId": "1", "prediction": "The cat."}, {"questionId": "0", "prediction": "dog"}]
    (tmp_path / "given.json").write_text(json.dumps(given))
    return tmp_path


def test_a_file_is_scored_without_a_model(answered, capsys):
    command = ["score", str(answered / "given.json"), "--task", "gqa", "--data_dir", str(answered / "data")]
    assert petx([*command, "--split", "testdev"]) == 0
    shown = capsys.readouterr().out
    assert "2 examples of gqa" in shown and "accuracy     50.0000" in shown and "normalised   100.0000" in shown
    assert petx([*command, "--split", "testdev", "--metric", "exact"]) == 0
    assert "normalised" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "more, message",
    [
        (["--task", "gqa", "--data_dir", "DATA", "--split", "test"], "the answers of gqa are not there"),
        (["--task", "gqa", "--data_dir", "DATA"], "--task needs --data_dir and --split"),
        (["--task", "gqq", "--data_dir", "DATA", "--split", "test"], "unknown task 'gqq'; there are: aokvqa, "),
        (["--task", "gqa", "--data_dir", "nowhere", "--split", "x"], "--data_dir must be the folder of the data"),
        (["--task", "gqa", "--data_dir", "DATA", "--split", "testdev", "--metric", "vqa"], "annotators' answers"),
        (["--task", "gqa", "--data_dir", "DATA", "--split", "testdev", "--meteor"], "--meteor is for captions"),
        (["--metric", "x"], "--metric must be one of caption, "),
        ([], "lies in no run: name its --task"),
        (["--split", "test"], "--split is for a file with --task"),
    ],
)
def test_what_cannot_be_scored_is_said(answered, capsys, monkeypatch, more, message):
    monkeypatch.setattr("petx.metrics._meteor.check_meteor", lambda: None)
    more = [str(answered / "data") if one == "DATA" else one for one in more]
    assert petx(["score", str(answered / "given.json"), *more]) == 2
    assert message in capsys.readouterr().err


def test_a_run_on_a_package_takes_no_folder(tmp_path):
    settings = dataclasses.asdict(checked(arguments.Settings, dict(data="easy-vqa", steps=1)))
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="--data_dir is for data of one's own, and this run's are easy-vqa"):
        predicted.of_run(tmp_path / "test-vqa.jsonl", tmp_path)


def test_meteor_says_what_it_needs(answered, capsys, monkeypatch):
    """And where both are, gets each caption's words with its references' by the same number."""
    folder = answered / "data" / "flickr30k" / "annotations"
    folder.mkdir(parents=True)
    (folder / "test.json").write_text(json.dumps([{"image": "1.jpg", "caption": ["A dog!", "one dog"]}]))
    file = answered / "captions.json"
    file.write_text(json.dumps([{"image_id": "1", "caption": "The Dog."}]))
    command = ["score", str(file), "--task", "flickr30k", "--data_dir", str(answered / "data"), "--split", "test"]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert petx([*command, "--meteor"]) == 2 and "METEOR needs Java" in capsys.readouterr().err
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/java")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert petx([*command, "--meteor"]) == 2 and "pip install --no-deps pycocoevalcap" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    asked = {}

    class Meteor:
        def compute_score(self, given, plain):
            asked.update(given=given, plain=plain)
            return 0.25, [0.25]

    monkeypatch.setitem(sys.modules, "pycocoevalcap", types.ModuleType("pycocoevalcap"))
    monkeypatch.setitem(sys.modules, "pycocoevalcap.meteor", types.ModuleType("pycocoevalcap.meteor"))
    module = types.ModuleType("pycocoevalcap.meteor.meteor")
    module.Meteor = Meteor
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert petx([*command, "--meteor"]) == 0 and "meteor       25.0000" in capsys.readouterr().out
    assert asked == {"given": {0: ["a dog", "one dog"]}, "plain": {0: ["the dog"]}}


def test_the_splits_without_answers_are_predicted(answered):
    spec = tasks.find("gqa")
    examples = spec.examples(answered / "data", ["test"], training=False)
    assert [example.answers for example in examples] == [(), ()] and examples[1].id == "1"
    with pytest.raises(UserError, match=r"test_balanced_questions\.json: entry 0 has no 'answer'"):
        spec.examples(answered / "data", ["test"], training=True)
    path = answered / "data" / "gqa" / "annotations" / "test_balanced_questions.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([rows[0] | {"answer": "dog"}, rows[1]]))
    with pytest.raises(UserError, match="entry 1 has no 'answer', and other entries have"):
        spec.examples(answered / "data", ["test"], training=False)
