"""Tasks in their released files as they come: LAVIS's copies, VL-T5's rows and the official ones, a few rows each."""

import json

import h5py
import numpy as np
import pytest
from PIL import Image

from petx import metrics, tasks
from petx.data.stores import H5Features, ImageFiles, folders_of
from petx.errors import UserError


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8-sig")  # a byte-order mark does not matter


def examples(name, folder, split, training=False):
    return tasks.find(name).examples(folder, [split], training)


def score(name, texts, given):
    return metrics.find(tasks.find(name).metric)(texts, given)


# ---- official questions and annotations of VQA v2 and OK-VQA ----

TEN = ["Two"] * 4 + ["2"] * 3 + ["three."] * 3


def write_official(folder, prefix, split, answers=TEN):
    questions = [{"image_id": 9, "question": "how many?", "question_id": 9000}]
    write(folder / f"{prefix}OpenEnded_mscoco_{split}_questions.json", {"questions": questions, "task_type": "x"})
    given = [{"answer": answer, "answer_confidence": "yes", "answer_id": i} for i, answer in enumerate(answers, 1)]
    notes = [{"question_id": 9000, "image_id": 9, "answer_type": "number", "question_type": "how", "answers": given}]
    write(folder / f"{prefix}mscoco_{split}_annotations.json", {"annotations": notes})


def test_vqa_v2_in_its_official_files(tmp_path):
    write_official(tmp_path / "vqa", "v2_", "val2014")
    (trained,) = examples("vqa", tmp_path, "val2014", training=True)
    assert trained.images == ("val2014/COCO_val2014_000000000009.jpg",) and trained.id == 9000
    assert dict(trained.answers) == pytest.approx({"2": 1.0, "3": 0.9})
    scored = examples("vqa", tmp_path, "val2014")
    # Annotators' answers lose their marks alone: three of ten say "2", and "Two" is another text.
    assert score("vqa", ["two"], scored) == pytest.approx({"accuracy": 90, "number": 90, "normalised": 100})
    assert score("vqa", ["three"], scored)["accuracy"] == pytest.approx(0)
    write(
        tmp_path / "vqa" / "v2_OpenEnded_mscoco_test-dev2015_questions.json",
        {"questions": [{"image_id": 1, "question": "what?", "question_id": 1}]},
    )
    (asked,) = examples("vqa", tmp_path, "test-dev2015")
    assert asked.images == ("test2015/COCO_test2015_000000000001.jpg",) and not asked.answered
    with pytest.raises(UserError, match=r"cannot read annotations from .*v2_mscoco_test-dev2015_annotations\.json"):
        examples("vqa", tmp_path, "test-dev2015", training=True)


def test_ten_equal_answers_are_compared_as_they_are(tmp_path):
    write_official(tmp_path / "vqa", "v2_", "val2014", ["T-shirt"] * 10)
    scored = examples("vqa", tmp_path, "val2014")
    assert score("vqa", ["t-shirt"], scored) == pytest.approx({"accuracy": 0, "number": 0, "normalised": 100})


def test_rows_of_vl_t5_take_their_answers_from_the_annotations(tmp_path):
    row = {"img_id": "COCO_val2014_000000000009", "question_id": 9000, "sent": "how many?", "label": {"2": 1.0}}
    write(tmp_path / "vqa" / "karpathy_test.json", [row])
    with pytest.raises(UserError, match=r"entry 0 has no 'answers', and .*v2_mscoco_val2014_annotations\.json is not"):
        examples("vqa", tmp_path, "karpathy_test")
    write_official(tmp_path / "vqa", "v2_", "val2014")
    (scored,) = examples("vqa", tmp_path, "karpathy_test")
    assert scored.references == tuple(TEN) and scored.kind == "number" and scored.id == 9000
    write(tmp_path / "vqa" / "karpathy_test.json", [row | {"question_id": 7}])
    with pytest.raises(UserError, match=r"karpathy_test\.json: entry 0: question_id 7 is not in"):
        examples("vqa", tmp_path, "karpathy_test")
    write(tmp_path / "vqa" / "test.json", [{name: row[name] for name in ("img_id", "question_id", "sent")}])
    assert not examples("vqa", tmp_path, "test")[0].answered


def test_okvqa(tmp_path):
    folder = tmp_path / "okvqa" / "annotations"
    row = {"question_id": 9000, "question": "how many?", "answer": ["two"] * 9 + ["2"], "dataset": "okvqa"}
    write(folder / "okvqa_train.json", [row | {"image": "train2014/COCO_train2014_000000000009.jpg"}])
    write(folder / "vqa_val_eval.json", [row | {"image": "val2014/COCO_val2014_000000000009.jpg"}])
    (trained,) = examples("okvqa", tmp_path, "train", training=True)
    assert dict(trained.answers) == {"two": 0.9, "2": 0.1}
    (scored,) = examples("okvqa", tmp_path, "test")
    assert scored.references == tuple(row["answer"])
    write_official(folder, "", "val2014")
    (scored,) = examples("okvqa", tmp_path, "val")  # the official answers, once they are there
    assert scored.references == tuple(TEN) and scored.images == ("val2014/COCO_val2014_000000000009.jpg",)
    (official,) = examples("okvqa", tmp_path, "val2014")
    assert official.references == tuple(TEN) and official.id == 9000
    write(folder / "okvqa_train.json", [row | {"image": "x.jpg", "answer": []}])
    with pytest.raises(UserError, match=r"okvqa_train\.json: entry 0 has no answer in 'answer'"):
        examples("okvqa", tmp_path, "train", training=True)


# ---- GQA, TextVQA ----


@pytest.mark.parametrize("official", [False, True])
def test_gqa(tmp_path, official):
    row = {"question": "is it red?", "answer": "yes", "fullAnswer": "Yes, it is."}
    rows = [row | {"image": "2370799.jpg", "question_id": "01"}]
    write(
        tmp_path / "gqa" / "annotations" / "testdev_balanced_questions.json",
        {"01": row | {"imageId": "2370799"}} if official else rows,
    )
    (scored,) = given = examples("gqa", tmp_path, "testdev")
    assert scored.id == "01" and scored.images == ("2370799" if official else "2370799.jpg",)
    assert score("gqa", ["Yes."], given) == {"accuracy": 0, "normalised": 100}
    assert score("gqa", ["yes"], given) == {"accuracy": 100, "normalised": 100}


@pytest.mark.parametrize("official", [False, True])
def test_textvqa(tmp_path, official):
    answers = ["Nous les gosses"] + ["nous les gosses"] * 9
    row = {"question": "what is written?", "question_id": 34602}
    if official:
        rows = {"data": [row | {"image_id": "003a8ae2", "answers": answers, "set_name": "val"}]}
        write(tmp_path / "textvqa" / "TextVQA_0.5.1_val.json", rows)
    else:
        write(tmp_path / "textvqa" / "val.json", [row | {"image": "003a8ae2.jpg", "answer": answers}])
    given = examples("textvqa", tmp_path, "val")
    assert given[0].id == 34602 and given[0].references == tuple(answers)
    assert score("textvqa", ["Nous les gosses"], given) == {"accuracy": 100, "first answer": 0}
    changed = [given[0].__class__("", (), given[0].answers, ("gosses", *answers[1:]))]
    assert score("textvqa", ["The Gosses!"], changed) == pytest.approx({"accuracy": 30, "first answer": 100})


# ---- captions ----


def test_textcaps(tmp_path):
    folder = tmp_path / "textcaps" / "annotations"
    write(
        folder / "textcaps_train.json",
        [{"image": "train_images/a.jpg", "image_id": "a", "caption": f"sign {i}"} for i in (1, 2)],
    )
    write(
        folder / "textcaps_val.json",
        [{"image_path": "train_images/b.jpg", "image_id": "b", "reference_strs": ["one sign", "a sign"]}],
    )
    assert [e.answers[0][0] for e in examples("textcaps", tmp_path, "train", training=True)] == ["sign 1", "sign 2"]
    (scored,) = examples("textcaps", tmp_path, "val")
    assert scored.images == ("train_images/b.jpg",) and scored.references == ("one sign", "a sign")
    again = {"image_id": "c", "reference_strs": ["x", "y"]}
    write(folder / "TextCaps_0.1_dev.json", {"data": [again | {"caption_str": caption} for caption in "xy"]})
    assert [e.answers[0][0] for e in examples("textcaps", tmp_path, "dev", training=True)] == ["x", "y"]
    (once,) = examples("textcaps", tmp_path, "dev")
    assert once.references == ("x", "y") and once.images == ("c",) and once.id == "c"
    write(folder / "TextCaps_0.1_test.json", {"data": [{"image_id": "d"}]})
    (asked,) = examples("textcaps", tmp_path, "test")
    assert not asked.answered
    spec = tasks.find("textcaps")
    assert json.loads(spec.predictions.dump([asked], ["a sign"])) == [{"image_id": "d", "caption": "a sign"}]


def test_flickr30k(tmp_path):
    folder = tmp_path / "flickr30k" / "annotations"
    write(folder / "train.json", [{"image": "flickr30k-images/1.jpg", "caption": "a dog", "image_id": 0}])
    write(folder / "test.json", [{"image": "flickr30k-images/2.jpg", "caption": ["a cat", "one cat"]}])
    assert examples("flickr30k", tmp_path, "train", training=True)[0].answers == (("a dog", 1.0),)
    (scored,) = examples("flickr30k", tmp_path, "test")
    assert scored.references == ("a cat", "one cat") and scored.id == "2"
    sentences = [{"raw": " A bird. "}, {"raw": "birds"}]
    write(
        folder / "dataset_flickr30k.json", {"images": [{"filename": "3.jpg", "split": "val", "sentences": sentences}]}
    )
    (karpathy,) = examples("flickr30k", tmp_path, "val")
    assert karpathy.images == ("3",) and karpathy.references == ("A bird.", "birds")


def test_captions_name_the_image_as_coco_does(tmp_path):
    row = {"filename": "COCO_val2014_000000000042.jpg", "cocoid": 42, "split": "test", "sentences": [{"raw": "a"}] * 2}
    write(tmp_path / "COCO" / "dataset_coco.json", {"images": [row]})
    (scored,) = given = examples("caption", tmp_path, "test")
    assert scored.id == 42 and scored.references == ("a", "a")  # two annotators, who count twice
    names = {"cider", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider raw"}
    assert set(score("caption", ["a"], given)) == names and tasks.find("caption").max_new == 19


# ---- NLVR2 ----


def test_nlvr2_in_its_official_lines(tmp_path):
    rows = [
        {"identifier": f"test1-{sentence}-{pair}-0", "sentence": f"claim {sentence}", "label": "True"}
        for sentence, pair in ((0, 0), (0, 1), (1, 0))
    ]
    (tmp_path / "nlvr").mkdir()
    (tmp_path / "nlvr" / "test1.json").write_text("\n".join(map(json.dumps, rows)))
    given = examples("nlvr", tmp_path, "test1")
    assert given[1].images == ("test1-0-1-img0", "test1-0-1-img1") and given[1].id == "test1-0-1-0"
    # Two of three statements are right, and of two sentences one in every pair.
    assert score("nlvr", ["true", "false", "true"], given) == pytest.approx({"accuracy": 200 / 3, "consistency": 50})
    hidden = [{name: value for name, value in row.items() if name != "label"} for row in rows]
    write(tmp_path / "nlvr" / "hidden.json", hidden)
    assert not any(example.answered for example in examples("nlvr", tmp_path, "hidden"))


def test_a_task_of_another_method_says_why(tmp_path):
    from petx.train.petal import arguments
    from petx.train.petal.recipe import RECIPE

    more = dict(data="image-text", data_dir=str(tmp_path), host="x", tasks=["nlvr"], splits={})
    settings = arguments.checked(arguments.read_preset("smoke") | more)
    with pytest.raises(UserError, match="unknown task 'nlvr' .*asks about two images at once, and PETAL's hosts read"):
        RECIPE.prepared_host(settings)


# ---- where features and images lie ----


def test_features_in_the_released_folders(tmp_path):
    known = tasks.find("gqa").features
    for folder, name in zip(known, ("in_vg", "in_gqa"), strict=True):
        (tmp_path / folder).mkdir(parents=True)
        with h5py.File(tmp_path / folder / f"{name}.h5", "w") as file:
            file[f"{name}/features"] = np.zeros((4, 8), np.float32)
    store = H5Features(folders_of(None, str(tmp_path), known, "features"), 8, 4)
    store.check(["in_vg", "in_gqa", "x/in_gqa.jpg"])
    assert store("in_gqa")[0].shape == (4, 8) and store("train2014/in_vg.jpg")[0].shape == (4, 8)
    with pytest.raises(UserError, match=r"no feature file .*features/gone\.h5, nor in .*VG.*, nor in .*GQA"):
        store.check(["gone"])
    assert folders_of("mine", str(tmp_path), known, "features") == [tmp_path.__class__("mine")]


@pytest.mark.parametrize("image", ["val2014/COCO_val2014_000000000009.jpg", "COCO_val2014_000000000009"])
@pytest.mark.parametrize("place", ["coco/images/val2014", "images", "coco/images"])
def test_images_below_the_image_root(tmp_path, image, place):
    path = tmp_path / place / "COCO_val2014_000000000009.jpg"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(path)
    files = ImageFiles(folders_of(None, str(tmp_path), tasks.find("okvqa").images, "images"), None)
    assert files.path(image) == path


def test_a_picture_of_the_same_name_in_an_earlier_folder_is_another(tmp_path):
    for place in ("images", "coco/images/train2017"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / place / "7.png")
    files = ImageFiles(folders_of(None, str(tmp_path), ["coco/images"], "images"), None)
    for image in ("train2017/7", "train2017/7.png"):
        assert files.path(image) == tmp_path / "coco" / "images" / "train2017" / "7.png"
    assert files.path("7") == files.path("gone/7") == tmp_path / "images" / "7.png"
