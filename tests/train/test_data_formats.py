"""Readers of image-text and video-text data in VL-PET's formats."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from petx import tasks
from petx.data.stores import H5Features, NpzFeatures
from petx.data.tokenizers import word_tokenizer
from petx.errors import UserError
from petx.hosts.vl_bart import HOST
from petx.train.vlpet.arguments import Settings
from tests.fixtures import video_text as video_text_fixture
from tests.fixtures.image_text import GRID, WIDTH, write_data


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(["vqa: is there a red shape? yes no"], visual_tokens=4)


# ---- image-text files ----


@pytest.fixture
def image_text_dir(tmp_path):
    return write_data(tmp_path / "data")


def load(name, folder, splits, tokenizer, width=WIDTH, tokens=4, training=False):
    return loaded(name, folder, splits, H5Features(folder / "features", width, tokens), tokenizer, training)


def loaded(name, folder, splits, store, tokenizer, training):
    spec = tasks.find(name)
    examples = spec.examples(folder, splits, training, tokenizer)
    store.check(dict.fromkeys(image for example in examples for image in example.images))
    return HOST.dataset(spec, examples, store, tokenizer, Settings(), "train" if training else "test")


def test_vqa_file(image_text_dir, tokenizer):
    task = load("vqa", image_text_dir, ["karpathy_train"], tokenizer, training=True)
    example = task.examples[0]
    assert len(task) == 10 and len(example.references) == 10
    assert (task.prompt, example.text) == ("vqa: ", "what color is it?")  # prediction files tell the question alone
    assert [score for _, score in example.answers] == [1.0, 0.3]
    perfect = [example.answers[0][0] for example in task.examples]
    assert task.score(perfect)["accuracy"] == pytest.approx(100)
    assert task.score(["dark"] * 10)["accuracy"] == pytest.approx(30)


def test_gqa_nlvr_and_caption_files(image_text_dir, tokenizer):
    gqa = load("gqa", image_text_dir, ["train", "valid"], tokenizer)
    assert len(gqa) == 16 and gqa.prompt + gqa.examples[0].text == "gpa: which color?"
    nlvr = load("nlvr", image_text_dir, ["train"], tokenizer)
    assert nlvr[0]["visual_features"].shape == (8, WIDTH) and nlvr.examples[0].answers[0][0] in ("true", "false")
    trained = load("caption", image_text_dir, ["train", "restval"], tokenizer, training=True)
    scored = load("caption", image_text_dir, ["val"], tokenizer)
    assert len(trained) == 12 and len(scored) == 3 and len(scored.examples[0].references) == 2
    assert scored.score([example.references[0] for example in scored.examples])["rouge_l"] == pytest.approx(100)
    assert {trained.loss, nlvr.loss} == {"token", "sample"}


def test_grids_are_max_pooled(image_text_dir, tokenizer):
    store = H5Features(image_text_dir / "features", WIDTH, 1)
    whole = H5Features(image_text_dir / "features", WIDTH, GRID * GRID)
    image = "COCO_0000"
    torch.testing.assert_close(store(image)[0][0], whole(image)[0].max(0).values)
    assert store(image)[1].abs().sum() == 0


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(width=2048), r"COCO_\d+\.h5: features are \[9, 8\], of width 8; wanted \[V, 2048\]"),
        (dict(tokens=36), r"9 visual tokens cannot be pooled to visual_tokens=36"),
    ],
)
def test_unfitting_features_are_named(image_text_dir, tokenizer, options, message):
    with pytest.raises(UserError, match=message):
        load("gqa", image_text_dir, ["train"], tokenizer, **options)


def test_missing_and_broken_files_are_named(image_text_dir, tokenizer):
    with pytest.raises(UserError, match=r"cannot read annotations from .*GQA/nowhere\.json"):
        load("gqa", image_text_dir, ["nowhere"], tokenizer)
    rows = json.loads((image_text_dir / "nlvr/train.json").read_text())
    del rows[3]["img1"]
    (image_text_dir / "nlvr/train.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"train\.json: entry 3 has no 'img1'"):
        load("nlvr", image_text_dir, ["train"], tokenizer)
    image = load("gqa", image_text_dir, ["train"], tokenizer).examples[0].images[0]
    Path(image_text_dir, "features", f"{image}.h5").write_bytes(b"broken")
    with pytest.raises(UserError, match=f"{image}.h5: cannot read"):
        load("gqa", image_text_dir, ["train"], tokenizer)
    Path(image_text_dir, "features", f"{image}.h5").unlink()
    with pytest.raises(UserError, match=f"no feature file .*{image}.h5"):
        load("gqa", image_text_dir, ["train"], tokenizer)


def test_h5py_missing_is_said(image_text_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match="pip install h5py"):
        H5Features(image_text_dir, WIDTH, 4)


# ---- video-text files ----


@pytest.fixture
def video_text_dir(tmp_path):
    return video_text_fixture.write_data(tmp_path / "video")


def load_video(name, folder, splits, tokenizer, tokens=4, width=video_text_fixture.WIDTH, training=False):
    return loaded(name, folder, splits, NpzFeatures(folder / "vis_features", width, tokens), tokenizer, training)


def test_video_questions(video_text_dir, tokenizer):
    task = load_video("tvqa", video_text_dir, ["train"], tokenizer)
    example = task.examples[2]
    listed = "a0: red. a1: blue. a2: green. a3: dark. a4: thing."
    # Every subtitle, inside the question's span or not, as the released code has it.
    assert example.text == f"[Subs] red green [Q] what color is it? [TS] (0.50-2.00) [Choices] {listed} tvqa: "
    assert example.answers == (("a2", 1.0),) and example.images == (("tv", "c"),) and example.id == 2
    assert (task.num_beams, task.max_new) == (5, 19)


def test_video_captions(video_text_dir, tokenizer):
    trained = load_video("yc2c", video_text_dir, ["train_release"], tokenizer, training=True)
    scored = load_video("yc2c", video_text_dir, ["val_release"], tokenizer)
    assert len(trained) == 6 and len(scored) == 3 and len(scored.examples[0].references) == 2
    assert scored.examples[0].text == "[Subs]  yc2c: " and scored.num_beams == 5 and scored.loss == "sample"
    rows = [json.loads(line) for line in (video_text_dir / "ann/yc2c/yc2c_val_release.jsonl").read_text().splitlines()]
    folder = video_text_dir / "ann" / "tvc"
    folder.mkdir()
    bare = [{name: value for name, value in row.items() if name != "descs"} | {"ts": [35.73, 40.9]} for row in rows]
    (folder / "tvc_test_release.jsonl").write_text("\n".join(map(json.dumps, bare)))
    tvc = load_video("tvc", video_text_dir, ["test_release"], tokenizer)
    assert tvc.examples[1].text == "[Subs] red green [TS] ([35.73, 40.9]) tvc: "
    assert not tvc.answered and tvc.score(["a"] * 3) == {} and [example.id for example in tvc.examples] == [0, 1, 2]


def test_frames_are_pooled_or_filled_up(video_text_dir):
    store = NpzFeatures(video_text_dir / "vis_features", video_text_fixture.WIDTH, 4)
    raw = {name: torch.from_numpy(np.load(store.path(("tv", name)))["features"]) for name in ("a", "b")}
    short, boxes = store(("tv", "a"))
    assert torch.equal(short[:3], raw["a"]) and short[3].abs().sum() == 0 and boxes.shape == (4, 4)
    torch.testing.assert_close(store(("tv", "b"))[0], raw["b"].reshape(4, 3, -1).amax(1))
    store.width = 512
    with pytest.raises(UserError, match=r"a\.npz: features are \[3, 6\], of width 6; wanted \[T, 512\]"):
        store(("tv", "a"))


def test_a_long_text_is_cut_at_its_end(video_text_dir):
    tokenizer = word_tokenizer(["[Subs] red [Q] what color is it? [TS] tvqa:"], visual_tokens=0)
    rows = [{"vid_name": name, "sub": [{"text": "red " * 900, "start": 0, "end": 9}]} for name in "abc"]
    (video_text_dir / "ann" / "tv_subtitles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_video("tvqa", video_text_dir, ["val"], tokenizer)
    ids = task[0]["input_ids"]
    assert len(ids) == 600 and tokenizer.decode(ids).startswith("[ subs ] red") and ids[-1] == tokenizer.eos_token_id


def test_missing_video_files_are_named(video_text_dir, tokenizer):
    with pytest.raises(UserError, match=r"cannot read annotations from .*tvqa_test\.jsonl"):
        load_video("tvqa", video_text_dir, ["test"], tokenizer)
    (video_text_dir / "vis_features" / "tv" / "clip-vit" / "b.npz").unlink()
    with pytest.raises(UserError, match=r"no feature file .*b\.npz"):
        load_video("tvqa", video_text_dir, ["train"], tokenizer)
