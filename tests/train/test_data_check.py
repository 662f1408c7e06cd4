"""``petx data check``: what a folder holds, what it lacks, and what is wrong in it."""

import json
import sys

import pytest

from petx.cli import main as petx
from petx.tasks import _checking
from tests.fixtures import image_text, instruct_blip, video_text

SIZES = ["--feature_width", str(image_text.WIDTH), "--visual_tokens", "4"]


def checked(capsys, *command):
    code = petx(["data", "check", *map(str, command)])
    return code, capsys.readouterr().out


def test_every_task_says_which_files_it_reads():
    names = {spec.name for spec in _checking.all_tasks()}
    assert names >= {"vqa", "okvqa", "aokvqa", "gqa", "textvqa", "textcaps", "flickr30k", "caption", "nlvr", "yc2c"}


def test_features_of_four_tasks(tmp_path, capsys):
    folder = image_text.write_data(tmp_path / "data")
    code, shown = checked(capsys, folder, *SIZES)
    assert code == 0, shown
    assert "karpathy_val: vqa/karpathy_val.json\n    10 examples, answers known" in shown
    assert "restval: COCO/dataset_coco.json\n    3 examples, answers known\n    features: 3 of 3 files" in shown
    assert "okvqa: " in shown and "nothing of okvqa/annotations/okvqa_<split>.json, " in shown
    assert "17 splits, no problems" in shown
    code, shown = checked(capsys, folder, "--task", "gqa", "--feature_width", "7")
    assert code == 1 and "features are [9, 8], of width 8; wanted [V, 7]" in shown and "3 problems" in shown


def test_what_is_wrong_is_named_with_file_entry_and_field(tmp_path, capsys):
    folder = instruct_blip.write_data(tmp_path / "data")
    assert checked(capsys, folder)[0] == 0  # pictures do as well as features
    rows = json.loads((folder / "vqa" / "val.json").read_text())
    rows[2]["sent"] = 3
    (folder / "vqa" / "val.json").write_text(json.dumps(rows))
    (folder / "images" / "4.png").unlink()
    (folder / "nlvr").mkdir()
    (folder / "nlvr" / "dev.json").write_text("[{")
    code, shown = checked(capsys, folder)
    assert code == 1
    assert "wrong: " + str(folder / "vqa" / "val.json") + ": entry 2: sent must be text, got 3" in shown
    assert "pictures: 8 of 9 files" in shown and f"no image file {folder / 'images' / '4'}" in shown
    assert f"wrong: cannot read annotations from {folder / 'nlvr' / 'dev.json'}" in shown


def test_a_split_that_is_only_trained_on_or_only_scored_is_whole(tmp_path, capsys):
    folder = instruct_blip.write_data(tmp_path / "data")
    for split, field in (("train", "answers"), ("val", "label")):
        file = folder / "vqa" / f"{split}.json"
        rows = [row | {"answers": ["red"] * 10, "label": {"red": 1}} for row in json.loads(file.read_text())]
        file.write_text(json.dumps([{name: row[name] for name in row if name != field} for row in rows]))
    code, shown = checked(capsys, folder, "--task", "vqa")
    assert code == 0 and "no problems" in shown
    assert "examples, trained on, not scored: " in shown and "entry 0 has no 'answers'" in shown
    assert "examples, scored, not trained on: " in shown and "entry 0 has no 'label'" in shown


def test_pictures_are_checked_without_h5py(tmp_path, capsys, monkeypatch):
    folder = instruct_blip.write_data(tmp_path / "data")
    monkeypatch.setitem(sys.modules, "h5py", None)
    code, shown = checked(capsys, folder, "--task", "vqa")
    assert code == 0 and "pictures: 9 of 9 files" in shown and "features" not in shown
    (folder / "images" / "4.png").unlink()
    code, shown = checked(capsys, folder, "--task", "vqa")
    assert code == 1 and "pip install h5py" in shown and f"no image file {folder / 'images' / '4'}" in shown


def test_files_that_are_called_otherwise_than_their_split(tmp_path, capsys):
    folder = tmp_path / "okvqa" / "annotations"
    row = {"question_id": 9, "question": "what?", "answer": ["red"] * 10, "image": "COCO_val2014_000000000009.jpg"}
    folder.mkdir(parents=True)
    for name in ("okvqa_train", "vqa_val_eval"):
        (folder / f"{name}.json").write_text(json.dumps([row]))
    instruct_blip.write_data(tmp_path / "pictures")
    place = tmp_path / "coco" / "images" / "val2014"
    place.mkdir(parents=True)
    (tmp_path / "pictures" / "images" / "0.png").rename(place / "COCO_val2014_000000000009.jpg")
    code, shown = checked(capsys, tmp_path)
    assert code == 0, shown
    assert "train: okvqa/annotations/okvqa_train.json" in shown and "val: okvqa/annotations/vqa_val_eval.json" in shown
    assert "pictures: 1 of 1 files" in shown


def test_videos(tmp_path, capsys):
    folder = video_text.write_data(tmp_path / "video")
    sizes = ["--feature_width", str(video_text.WIDTH), "--visual_tokens", "4"]
    code, shown = checked(capsys, folder, *sizes)
    assert code == 0 and "val_release: ann/yc2c/yc2c_val_release.jsonl" in shown and "4 splits" in shown
    broken = folder / "vis_features" / "tv" / "clip-vit" / "b.npz"
    broken.write_bytes(broken.read_bytes()[:200])
    code, shown = checked(capsys, folder, *sizes)
    assert code == 1 and f"wrong: {broken}: cannot read features" in shown


@pytest.mark.parametrize(
    "command, message",
    [
        (["nowhere"], "PATH must be the folder of the data, got 'nowhere'"),
        ([".", "--task", "vqaa"], "unknown task 'vqaa'; there are: aokvqa"),
        ([".", "--feature_width", "0"], "--feature_width must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_checked_is_said(tmp_path, monkeypatch, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    assert petx(["data", "check", *command]) == 2
    assert message in capsys.readouterr().err


def test_an_empty_folder_is_no_success(tmp_path, capsys):
    code, shown = checked(capsys, tmp_path)
    assert code == 1 and "0 splits" in shown
