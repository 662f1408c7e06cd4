"""Retrieval without a model: its tasks in their released files, its predictions, recall, and how they are refused."""

import json
import random

import pytest

from petx import metrics, tasks
from petx.cli import main as petx
from petx.data.examples import Example
from petx.data.rankings import DEPTH, Ranking, RankingFile, names
from petx.errors import UserError
from petx.metrics import recall
from petx.train import petal
from petx.train.petal import arguments
from tests.fixtures import instruct_blip


def examples_of(counts):
    """An image with so many captions for each of ``counts``."""
    return [Example("", (f"{i}.jpg",), (), tuple("x" * n), id=70 + i) for i, n in enumerate(counts)]


def ranked(examples, scores):
    """Rankings by ``scores[image][caption]``, all captions in a row, best first."""
    images, captions = names(examples)
    every = [name for own in captions for name in own]
    best = [[every[j] for j in sorted(range(len(every)), key=lambda j: -row[j])] for row in scores]
    owners, place = [], 0
    for own in captions:
        columns = range(place, place := place + len(own))
        owners.append([[images[i] for i in sorted(range(len(images)), key=lambda i: -scores[i][j])] for j in columns])
    pairs = zip(best, owners, strict=True)
    return [Ranking(tuple(row[:DEPTH]), tuple(tuple(one[:DEPTH]) for one in own)) for row, own in pairs]


# ---- recall ----


def test_recall_by_hand():
    # Images 70 and 71 with two captions and one. 70 finds its second caption first, 71 its only one last.
    examples = examples_of([2, 1])
    scores = [[0.1, 0.9, 0.5], [0.8, 0.7, 0.6]]
    assert names(examples) == (["70", "71"], [["70#0", "70#1"], ["71#0"]])
    found = metrics.find("retrieval")(ranked(examples, scores), examples)
    # Captions: 70#0 prefers 71, 70#1 prefers 70, 71#0 prefers 71.
    assert found["i2t r1"] == 50 and found["i2t r5"] == found["i2t r10"] == 100
    assert found["t2i r1"] == pytest.approx(200 / 3) and found["t2i r5"] == 100
    assert next(iter(found)) == "mean recall" and found["mean recall"] == pytest.approx((50 + 200 / 3 + 400) / 6)
    assert recall([["b", "a"], ["a", "b"]], [{"a"}, {"a"}], 1) == 0.5


@pytest.mark.parametrize("seed", range(4))
def test_recall_is_its_definition(seed):
    """A query counts at k if fewer than k of the others score higher than the best of what belongs to it."""
    draw = random.Random(seed)
    counts = [draw.choice([1, 5, 5, 6]) for _ in range(40)]
    examples, owner = examples_of(counts), [i for i, count in enumerate(counts) for _ in range(count)]
    scores = [[draw.random() + 0.7 * (owner[j] == i) for j in range(len(owner))] for i in range(len(counts))]
    found = metrics.find("retrieval")(ranked(examples, scores), examples)
    values = []
    for k in (1, 5, 10):
        right = 0
        for i, row in enumerate(scores):
            best = max(value for j, value in enumerate(row) if owner[j] == i)
            right += sum(value > best for value in row) < k
        values.append(100 * right / len(scores))
        assert found[f"i2t r{k}"] == pytest.approx(values[-1])
    for k in (1, 5, 10):
        right = sum(sum(row[j] > scores[i][j] for row in scores) < k for j, i in enumerate(owner))
        values.append(100 * right / len(owner))
        assert found[f"t2i r{k}"] == pytest.approx(values[-1])
    assert found["mean recall"] == pytest.approx(sum(values) / 6) and 0 < found["t2i r1"] < found["t2i r10"] < 100


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([["a"]], [], 1), "rankings and relevant must be as many, got 1 and 0"),
        (([["a"]], [set()], 1), r"relevant\[0\] must hold at least one"),
        (([["a"]], [{"a"}], 0), "k must be"),
    ],
)
def test_recall_refuses(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        recall(*arguments)


# ---- predictions ----


def test_rankings_are_given_back(tmp_path):
    examples = examples_of([2, 1, 5])
    written = ranked(examples, [[(7 * i + 3 * j) % 11 for j in range(8)] for i in range(3)])
    form, path = RankingFile(), tmp_path / "test-x.jsonl"
    form.write(path, examples, written)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["image_id"] == 70 and lines[1]["caption_id"] == "70#0" and len(lines) == 3 + 8
    assert lines[1]["image_ids"] == [71, 72, 70]  # with the rows' type
    assert form.matched(path, examples) == written
    assert form.matched(path, examples[::-1]) == written[::-1]


@pytest.mark.parametrize(
    "number, line, message",
    [
        (0, None, "no ranking for 1 of 2 of image_id, such as 70"),
        (1, None, "no ranking for 1 of 2 of caption_id, such as 70#0"),
        (1, {"caption_id": "70#1", "image_ids": [70, 71]}, "line 2: caption_id 70#1 is not in the split"),
        (1, {"caption_id": "71#0", "image_ids": [70, 71]}, "line 4: caption_id 71#0 stands there twice"),
        (1, {"caption_id": "70#0", "image_ids": [70, 9]}, "line 2: image_ids names 9, which is not in the split"),
        (1, {"caption_id": "70#0", "image_ids": [70, 70]}, "line 2: image_ids names one twice"),
        (1, {"caption_id": "70#0", "image_ids": [70]}, "line 2: image_ids must name the 2 best or more, got 1"),
        (1, {"caption_id": "70#0", "image_ids": "70"}, "line 2: image_ids must be a list of names or numbers"),
        (1, {"caption_id": "70#0"}, "line 2 has no 'image_ids'"),
        (1, {"image_ids": []}, "line 2 must have 'image_id' or 'caption_id', got neither"),
        (1, {"image_id": 70, "caption_id": 3}, "line 2 must have 'image_id' or 'caption_id', got image_id and"),
    ],
)
def test_a_line_that_does_not_fit_is_named(tmp_path, number, line, message):
    examples = examples_of([1, 1])
    lines = RankingFile().dump(examples, ranked(examples, [[1, 0], [0, 1]])).splitlines()
    lines[number] = "" if line is None else json.dumps(line)
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=message):
        RankingFile().matched(path, examples)


# ---- the released files ----


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = value if isinstance(value, str) else json.dumps(value)
    path.write_text(lines, encoding="utf-8")


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_flickr30k_and_coco_as_lavis_has_them(tmp_path):
    train = [{"image": "a/1.jpg", "caption": text, "image_id": "x"} for text in ("one", "two")]
    test = [{"image": "a/1.jpg", "caption": ["one", "two", "two"]}, {"image": "a/2.jpg", "caption": ["three"]}]
    places = {"flickr30k_retrieval": "flickr30k/annotations/", "coco_retrieval": "coco/annotations/coco_karpathy_"}
    for name, place in places.items():
        spec = tasks.find(name)
        write(tmp_path / f"{place}train.json", train)
        write(tmp_path / f"{place}test.json", test)
        pairs = spec.examples(tmp_path, ["train"], training=True)
        assert [(one.images, one.answers[0][0]) for one in pairs] == [(("a/1.jpg",), "one"), (("a/1.jpg",), "two")]
        first, second = spec.examples(tmp_path, ["test"], training=False)
        assert first.references == ("one", "two", "two") and second.references == ("three",)
        assert names([first, second]) == (["1", "2"], [["1#0", "1#1", "1#2"], ["2#0"]])
        assert spec.retrieval and spec.metric == "retrieval"


def test_karpathys_file(tmp_path):
    images = [{"filename": "0.jpg", "cocoid": 5, "split": "test", "sentences": [{"raw": "c"}] * 5}]
    write(tmp_path / "COCO" / "dataset_coco.json", {"images": images})
    (example,) = tasks.find("coco_retrieval").examples(tmp_path, ["test"], training=False)
    assert example.id == 5 and len(example.references) == 5


def test_videos_in_json_lines_and_in_the_official_files(tmp_path):
    msrvtt, didemo = tasks.find("msrvtt_retrieval"), tasks.find("didemo_retrieval")
    write(tmp_path / "msrvtt" / "test.jsonl", lines([{"clip_name": "video7", "caption": text} for text in "ab"]))
    (example,) = msrvtt.examples(tmp_path, ["test"], training=False)
    assert example.images == (("msrvtt", "video7"),) and example.references == ("a", "b") and example.id == "video7"
    sentences = [{"video_id": f"video{i % 2}", "caption": f"c{i}", "sen_id": i} for i in range(4)]
    write(tmp_path / "msrvtt" / "MSRVTT_data.json", {"videos": [], "sentences": sentences})
    write(tmp_path / "msrvtt" / "MSRVTT_train.9k.csv", "video_id\nvideo1\n")
    write(tmp_path / "msrvtt" / "MSRVTT_JSFUSION_test.csv", 'key,vid_key,video_id,sentence\nr,m,video0,"a, b"\n')
    trained = msrvtt.examples(tmp_path, ["train.9k"], training=True)
    assert [one.answers[0][0] for one in trained] == ["c1", "c3"]
    (example,) = msrvtt.examples(tmp_path, ["JSFUSION_test"], training=False)
    assert example.references == ("a, b",)
    write(tmp_path / "didemo" / "test.jsonl", lines([{"clip_name": "v.1", "caption": ["One.", "Two."]}]))
    (example,) = didemo.examples(tmp_path, ["test"], training=False)
    assert example.references == ("One. Two.",) and example.images == (("didemo", "v.1"),)
    rows = [{"annotation_id": i, "video": f"{i % 2}.mov", "description": f"d{i}"} for i in range(4)]
    write(tmp_path / "didemo" / "val_data.json", rows)
    first, second = didemo.examples(tmp_path, ["val"], training=False)
    assert (first.references, second.references) == (("d0 d2",), ("d1 d3",)) and first.images == (("didemo", "0"),)


def test_a_cell_of_a_csv_file_may_hold_any_line_end(tmp_path):
    text = 'video_id, sentence\nv,"a man\r\nwalks"\r\nw,a\u2028b\x85c\n\nx,"d ""e"""\n'
    write(tmp_path / "msrvtt" / "MSRVTT_test.csv", text)
    found = tasks.find("msrvtt_retrieval").examples(tmp_path, ["test"], training=False)
    assert [one.references for one in found] == [("a man\nwalks",), ("a\u2028b\x85c",), ('d "e"',)]


@pytest.mark.parametrize(
    "file, text, message",
    [
        ("msrvtt/MSRVTT_x.csv", "id\n1\n", r"MSRVTT_x\.csv: line 1 must be a header with 'video_id', got id"),
        ("msrvtt/MSRVTT_x.csv", "video_id,video_id\n1,2\n", r"MSRVTT_x\.csv: line 1 must be .* 'video_id' once"),
        ("msrvtt/MSRVTT_x.csv", "video_id,sentence\nv\n", r"MSRVTT_x\.csv: line 2 has 1 cells, and the header 2"),
        ("msrvtt/MSRVTT_x.csv", 'video_id\nv\n"w\nx\n', r"MSRVTT_x\.csv: line 3 is no CSV: unexpected end"),
        ("msrvtt/MSRVTT_x.csv", "video_id\n" + "v" * 200_000, r"MSRVTT_x\.csv: line 2 is no CSV: field larger"),
        ("msrvtt/MSRVTT_x.csv", "video_id\n", r"MSRVTT_x\.csv: there is no line below the header"),
        ("msrvtt/MSRVTT_x.csv", "video_id\nv\n", r"MSRVTT_x\.csv: line 2: video_id v has no sentence in "),
        ("msrvtt/x.jsonl", '{"clip_name": "v", "caption": 3}', r"x\.jsonl: line 1: caption must be text, got 3"),
        ("msrvtt/x.jsonl", '{"caption": "c"}', r"x\.jsonl: line 1 has no 'clip_name'"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, file, text, message):
    write(tmp_path / "msrvtt" / "MSRVTT_data.json", {"sentences": [{"video_id": "w", "caption": "c"}]})
    write(tmp_path / file, text)
    with pytest.raises(UserError, match=message):
        tasks.find("msrvtt_retrieval").examples(tmp_path, ["x"], training=False)


def test_score_and_data_check(tmp_path, capsys):
    folder = instruct_blip.write_data(tmp_path / "data", images=3)
    code = petx(["data", "check", str(folder), "--task", "coco_retrieval"])
    shown = capsys.readouterr().out
    assert code == 0 and "val: COCO/dataset_coco.json\n    3 examples, answers known" in shown, shown
    spec = tasks.find("coco_retrieval")
    examples = spec.examples(folder, ["val"], training=False)
    spec.predictions.write(tmp_path / "r.jsonl", examples, ranked(examples, [[3, 2, 1], [1, 2, 3], [1, 2, 3]]))
    command = ["score", str(tmp_path / "r.jsonl"), "--task", "coco_retrieval", "--data_dir", str(folder)]
    assert petx([*command, "--split", "val"]) == 0
    # Images: 0 and 2 find their own. Captions: 0 prefers 0; 1 is a tie, whose first is 0; 2 prefers 1.
    assert (
        f"i2t r1       {200 / 3:.4f}\n" in (shown := capsys.readouterr().out) and f"t2i r1       {100 / 3:.4f}" in shown
    )
    assert petx([*command, "--split", "val", "--metric", "caption"]) == 2
    assert "metric caption is not for coco_retrieval, whose predictions are rankings" in capsys.readouterr().err
    captions = json.loads((folder / "COCO" / "dataset_coco.json").read_text())
    for image in captions["images"]:
        del image["sentences"]
    write(folder / "COCO" / "dataset_coco.json", captions)
    assert petx(["data", "check", str(folder), "--task", "coco_retrieval"]) == 1
    assert "example 0 has no caption, and retrieval ranks captions and images" in capsys.readouterr().out


@pytest.mark.parametrize("task, metric, kind", [("vqa", "retrieval", "texts"), ("coco_retrieval", "exact", "rankings")])
def test_a_metric_of_the_other_kind_is_refused(tmp_path, task, metric, kind):
    instruct_blip.write_data(tmp_path / "data", images=3)
    splits = {task: {"train": ["train"], "dev": ["val"], "test": ["val"]}}
    more = dict(tasks=[task], splits=splits, metrics={task: metric}, max_target={})
    settings = arguments.checked(vars(instruct_blip.settings(tmp_path, tmp_path / "out", **more)))
    with pytest.raises(UserError, match=f"metrics.{task} must be a metric of {kind}, got '{metric}'"):
        petal.run(settings)
