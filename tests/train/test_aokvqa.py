"""The task A-OKVQA in its released files."""

import json

import pytest

from petx import metrics, tasks
from petx.cli import main as petx
from petx.errors import UserError
from petx.train import petal
from tests.fixtures import instruct_blip as fixture

ROW = {"split": "train", "image_id": 299207, "question_id": "22MexNkBPpdZGX6sxbxVBH", "question": "What color is it?"}
ROW |= {"choices": ["red", "blue", "tan", "dark"], "correct_choice_idx": 0, "difficult_direct_answer": False}
ROW |= {"direct_answers": ["red"] * 7 + ["dark"] * 2 + ["blue"], "rationales": ["It is red."] * 3}


def write(folder, split, rows):
    path = folder / "aokvqa" / "annotations" / f"aokvqa_v1p0_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_the_released_rows(tmp_path):
    spec = tasks.find("aokvqa")
    write(tmp_path, "train", [ROW, ROW | {"image": "val2014/x.jpg", "difficult_direct_answer": True}])
    first, second = spec.examples(tmp_path, ["train"], training=True)
    assert first.text == "What color is it?" and first.images == ("train2017/000000299207.jpg",)
    assert dict(first.answers) == {"red": 0.7, "dark": 0.2, "blue": 0.1}
    assert second.images == ("val2014/x.jpg",)
    (scored,) = spec.examples(tmp_path, ["train"], training=False)  # without the difficult one
    score = metrics.find(spec.metric)
    assert [score([answer], [scored])["accuracy"] for answer in ("red", "dark", "blue", "green")] == pytest.approx(
        [100, 200 / 3, 100 / 3, 0]
    )
    assert score(["The Red"], [scored]) == {"accuracy": 0, "normalised": 100}  # its own rule compares what is there


@pytest.mark.parametrize(
    "change, message",
    [
        ({"direct_answers": []}, "entry 1 has no answer in 'direct_answers'"),
        ({"image_id": None}, "entry 1 has neither 'image' nor 'image_id'"),
        ({"question": None}, "entry 1 has no 'question'"),
    ],
)
def test_what_is_missing_is_named(tmp_path, change, message):
    broken = {name: value for name, value in (ROW | change).items() if value is not None}
    write(tmp_path, "train", [ROW, broken])
    with pytest.raises(UserError, match=f"aokvqa_v1p0_train.json: {message}"):
        tasks.find("aokvqa").examples(tmp_path, ["train"], training=True)


def test_multiple_choice(tmp_path):
    spec = tasks.find("aokvqa_choice")
    test = {name: value for name, value in ROW.items() if name != "correct_choice_idx"}
    write(tmp_path, "val", [ROW | {"correct_choice_idx": 1}])
    write(tmp_path, "test", [test])
    (scored,) = spec.examples(tmp_path, ["val"], training=False)
    assert scored.text == "What color is it? Choices: red, blue, tan, dark" and scored.answers == (("blue", 1.0),)
    score = metrics.find(spec.metric)
    assert [score([text], [scored])["accuracy"] for text in ("blue", "Blue.", "red")] == [100, 100, 0]
    assert score(["Blue."], [scored])["as generated"] == 0
    (asked,) = spec.examples(tmp_path, ["test"], training=False)
    assert not asked.answered
    assert json.loads(spec.predictions.dump([asked], ["Blue."])) == {ROW["question_id"]: {"multiple_choice": "blue"}}
    write(tmp_path, "val", [ROW | {"correct_choice_idx": 4}])
    with pytest.raises(UserError, match="entry 0: correct_choice_idx must be a whole number from 0 to 3, got 4"):
        spec.examples(tmp_path, ["val"], training=False)


@pytest.mark.slow
def test_a_host_is_tuned_on_it_and_the_test_split_predicted(tmp_path, capsys):
    fixture.write_host(tmp_path / "host")
    fixture.write_data(tmp_path / "data")
    for split in ("train", "val", "test"):
        rows = [
            ROW | {"question_id": f"q{i}", "image": f"{i}.png", "direct_answers": [colour] * 10}
            for i, colour in enumerate(fixture.COLOURS)
        ]
        if split == "test":
            rows = [{name: value for name, value in row.items() if name != "direct_answers"} for row in rows]
        write(tmp_path / "data", split, rows)
    splits = {"aokvqa": {"train": ["train"], "dev": ["val"], "test": ["test"]}}
    more = dict(tasks=["aokvqa"], splits=splits, metrics={}, arms=["petal"], epochs=1, max_target={})
    assert petal.run(fixture.settings(tmp_path, tmp_path / "out", **more)) == 0
    assert "its predictions on test are the same" in capsys.readouterr().out
    folder = tmp_path / "out" / "petal" / "seed-42"
    given = json.loads((folder / "predictions" / "test-aokvqa.json").read_text())
    assert list(given) == ["q0", "q1", "q2"] and all(isinstance(one["direct_answer"], str) for one in given.values())
    record = json.loads((folder / "result.json").read_text())
    assert record["test"] == {} and set(record["dev"]) == {"accuracy", "normalised"}
    assert petx(["score", str(folder / "predictions" / "dev-aokvqa.json")]) == 0
    assert f"accuracy     {record['dev']['accuracy']:.4f}" in capsys.readouterr().out
    assert petx(["score", str(folder / "predictions" / "test-aokvqa.json")]) == 2
    assert "the answers of aokvqa are not there" in capsys.readouterr().err
    assert petx(["eval", "--adapter", str(folder / "tuned")]) == 0
    assert "no answers to score" in capsys.readouterr().out
    assert json.loads((folder / "eval" / "test-aokvqa.json").read_text()) == given
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = ["--data_dir", str(tmp_path / "moved")]
    assert petx(["score", str(folder / "predictions" / "dev-aokvqa.json"), *moved]) == 0
    command = ["eval", "--adapter", str(folder / "tuned"), "--split", "dev", "--output", str(tmp_path / "again")]
    assert petx(command) == 2
    assert petx([*command, *moved]) == 0
    wanted = (folder / "predictions" / "dev-aokvqa.json").read_text()
    assert (tmp_path / "again" / "dev-aokvqa.json").read_text() == wanted
