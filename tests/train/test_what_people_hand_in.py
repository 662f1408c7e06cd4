"""What people hand in: photos as cameras write them, every picture mode, annotations as projects publish them,
feature files of every kind, and paths of every kind."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from petx import tasks
from petx.data.pictures import _TURNED, ORIENTATION, check_picture, read_picture
from petx.data.rows import json_lines, json_rows
from petx.data.stores import ImageFiles
from petx.errors import UserError
from tests.fixtures.image_text import write_data

# ---- pictures ----


def halves(width=40, height=20):
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", (width, height), "red")
    picture.paste("blue", (width // 2, 0, width, height))
    return picture


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_camera_noted(tmp_path, kind, orientation):
    seen, undo = halves(), {6: 8, 8: 6}.get(orientation, orientation)  # a quarter turn is undone by the other one
    lying = seen.transpose(_TURNED[undo]) if orientation > 1 else seen
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"photo.{kind}"
    lying.save(path, exif=exif, **({"quality": 100} if kind in ("jpg", "webp") else {}))
    read = read_picture(path)
    assert read.size == (40, 20) and read.mode == "RGB"
    left, right = np.asarray(read)[10, 5], np.asarray(read)[10, 35]
    assert left[0] > 240 and left[2] < 15 and right[2] > 240 and right[0] < 15
    files = ImageFiles(tmp_path, lambda picture, **_: {"pixel_values": [torch.tensor(picture.size)]})
    assert files("photo.jpg" if kind == "jpg" else path.name)[0].tolist() == [40, 20]


def test_damaged_notes_of_a_camera_leave_the_picture_as_it_lies(tmp_path):
    path = tmp_path / "photo.jpg"
    halves().save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\xff\xff\xff\xff\0")
    assert read_picture(path).size == (40, 20)


GREY = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)


@pytest.mark.parametrize(
    "picture, kind, seen",
    [
        (Image.new("1", (4, 4), 1), "png", (255, 255, 255)),
        (Image.new("L", (4, 4), 77), "png", (77, 77, 77)),
        (Image.new("P", (4, 4), 0), "png", (0, 0, 0)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "png", (255, 255, 255)),  # nothing of it is seen
        (Image.new("RGBA", (4, 4), (255, 0, 0, 255)), "webp", (255, 0, 0)),
        (Image.new("LA", (4, 4), (0, 0)), "png", (255, 255, 255)),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "tiff", (255, 0, 0)),
        (Image.new("YCbCr", (4, 4), (255, 128, 128)), "tiff", (255, 255, 255)),
        (Image.fromarray(np.full((4, 4), 32896, np.uint16)), "png", (128, 128, 128)),
        (Image.fromarray(np.full((4, 4), 32896, np.uint16)), "tiff", (128, 128, 128)),
        (Image.new("L", (4, 4), 77), "gif", (77, 77, 77)),
        (Image.new("RGB", (4, 4), (1, 2, 3)), "bmp", (1, 2, 3)),
    ],
    ids=lambda one: getattr(one, "mode", str(one)),
)
def test_every_mode_becomes_what_is_seen(tmp_path, picture, kind, seen):
    path = tmp_path / f"picture.{kind}"
    picture.save(path)
    check_picture(path)
    got = np.asarray(read_picture(path))[0, 0].astype(int)
    assert np.abs(got - seen).max() <= 1


@pytest.mark.parametrize(
    "picture, colour",
    [
        (Image.new("RGB", (4, 4), (9, 9, 9)), (9, 9, 9)),
        (Image.new("L", (4, 4), 9), 9),
        (Image.new("1", (4, 4), 0), 0),
        (Image.new("RGB", (4, 4), (9, 9, 9)).quantize(4), 0),
        (Image.fromarray(np.full((4, 4), 2570, np.uint16)), 2570),
    ],
    ids=lambda one: getattr(one, "mode", ""),
)
def test_a_colour_that_stands_for_nothing_is_white(tmp_path, picture, colour):
    path = tmp_path / "clear.png"
    picture.save(path, transparency=colour)
    assert np.asarray(read_picture(path))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_of_an_animation_the_first_picture_is_read(tmp_path, kind):
    path = tmp_path / f"moving.{kind}"
    halves().save(path, save_all=True, append_images=[Image.new("RGB", (40, 20), "lime")] * 2, lossless=True)
    check_picture(path)
    left, right = np.asarray(read_picture(path))[10, [5, 35]].tolist()
    assert left == [255, 0, 0] and right == [0, 0, 255]


@pytest.mark.parametrize("mode", ["F", "LAB"])
def test_a_mode_without_one_way_to_be_seen_is_refused_by_name(tmp_path, mode):
    path = tmp_path / "picture.tiff"
    Image.new(mode, (4, 4)).save(path)
    for read in (read_picture, check_picture):
        with pytest.raises(UserError, match=rf"picture\.tiff as an image: its mode is {mode}; wanted one of 1, L, P"):
            read(path)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "gif", "tiff", "bmp"])
def test_a_picture_cut_short_is_found_before_training(tmp_path, kind):
    path = tmp_path / f"cut.{kind}"
    Image.effect_noise((64, 64), 80).convert("RGB").save(path)
    check_picture(path)
    whole = path.read_bytes()
    for share in (0.0, 0.1, 0.5, 0.95):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError, match=rf"cannot read .*cut\.{kind} as an image"):
            check_picture(path)


# ---- annotations ----


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


def examples(name, folder, split, training=False):
    return tasks.find(name).examples(folder, [split], training)


def change(path, **fields):
    rows = json.loads(path.read_text())
    rows[1] |= fields
    path.write_text(json.dumps(rows))


@pytest.mark.parametrize(
    "label, answer", [("True", "true"), ("False", "false"), (True, "true"), (0, "false"), ("1", "true")]
)
def test_labels_of_nlvr2_in_every_layout(data, label, answer):
    change(data / "nlvr" / "train.json", label=label)
    assert examples("nlvr", data, "train")[1].answers == ((answer, 1.0),)


TEXTS = "must be a list of texts"
SCORES = r"label must be an answer or \{answer: score\}"


@pytest.mark.parametrize(
    "name, file, split, fields, message",
    [
        ("nlvr", "nlvr/train.json", "train", dict(label=None), "label must be true or false, 1 or 0, got None"),
        ("nlvr", "nlvr/train.json", "train", dict(label="yes"), "label must be true or false, 1 or 0, got 'yes'"),
        ("nlvr", "nlvr/train.json", "train", dict(label=2), "label must be true or false"),
        ("nlvr", "nlvr/train.json", "train", dict(label={}), "label must be true or false"),
        ("nlvr", "nlvr/train.json", "train", dict(img0=None), "img0 must be a name or a number, got None"),
        ("nlvr", "nlvr/train.json", "train", dict(sent=3), "sent must be text, got 3"),
        ("nlvr", "nlvr/train.json", "train", dict(sent="\ud800"), "sent must be text without half of a surrogate pair"),
        ("gqa", "GQA/train.json", "train", dict(label={"\ud800": 1}), r"label must be an answer or"),
        ("gqa", "GQA/train.json", "train", dict(label={}), r"label must be .* with an answer, got {}"),
        ("gqa", "GQA/train.json", "train", dict(label=None), SCORES),
        ("gqa", "GQA/train.json", "train", dict(label={"red": "1"}), SCORES),
        ("gqa", "GQA/train.json", "train", dict(label={"red": float("nan")}), SCORES),
        ("gqa", "GQA/train.json", "train", dict(label={"red": 10**400}), SCORES),
        ("gqa", "GQA/train.json", "train", dict(label=["red"]), SCORES),
        ("vqa", "vqa/karpathy_train.json", "karpathy_train", dict(label=None), SCORES),
        ("vqa", "vqa/karpathy_train.json", "karpathy_train", dict(answers=3), f"answers {TEXTS}"),
        ("vqa", "vqa/karpathy_train.json", "karpathy_train", dict(answers=[{"text": "a"}]), f"answers {TEXTS}"),
        ("vqa", "vqa/karpathy_train.json", "karpathy_train", dict(sent=None), "sent must be text, got None"),
        ("vqa", "vqa/karpathy_train.json", "karpathy_train", dict(img_id=[1]), "img_id must be a name or a number"),
    ],
)
def test_annotations_that_cannot_be_read_name_file_entry_and_field(data, name, file, split, fields, message):
    change(data / file, **fields)
    with pytest.raises(UserError, match=rf"{file.rpartition('/')[2]}: entry 1: {message}"):
        examples(name, data, split, training=True)


def test_plain_texts_do_as_mappings_with_a_text(data):
    change(data / "vqa" / "karpathy_train.json", answers=["red"] * 10, label="red", img_id=7)
    example = examples("vqa", data, "karpathy_train", training=True)[1]
    assert example.references == ("red",) * 10 and example.answers == (("red", 1.0),) and example.images == ("7",)
    file = data / "COCO" / "dataset_coco.json"
    rows = json.loads(file.read_text())
    rows["images"][0]["sentences"] = ["one", "two"]
    file.write_text(json.dumps(rows))
    assert examples("caption", data, "train", training=True)[0].references == ("one", "two")
    rows["images"][0]["sentences"] = []
    file.write_text(json.dumps(rows))
    with pytest.raises(UserError, match=rf"entry 0: sentences {TEXTS}"):
        examples("caption", data, "train")


@pytest.mark.parametrize("text", ["<image>\nwhich color?", "which color?\n<image>", "<image> which <image>color?"])
def test_the_placeholder_of_an_image_is_taken_out_of_a_question(data, text):
    change(data / "GQA" / "train.json", sent=text)
    assert examples("gqa", data, "train")[1].text == "which color?"


def test_a_question_of_the_placeholder_alone_is_refused(data):
    change(data / "GQA" / "train.json", sent=" <image>\n")
    with pytest.raises(UserError, match=r"sent must be a text beside <image>, got ' <image>\\n'"):
        examples("gqa", data, "train")


def test_a_byte_order_mark_is_skipped_and_another_encoding_told(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"a": "é"}]', encoding="utf-8-sig")
    assert json_rows(path, "a") == [{"a": "é"}]
    for encoding in ("utf-16", "latin-1"):
        path.write_text('[{"a": "é"}]', encoding=encoding)
        with pytest.raises(UserError, match=r"rows\.json: it is not UTF-8 .*; save it as UTF-8"):
            json_rows(path, "a")


def test_a_line_of_json_ends_at_a_line_feed_alone(tmp_path):
    path = tmp_path / "rows.jsonl"
    texts = [f"a{mark}b" for mark in ("\u2028", "\u2029", "\x85")]
    lines = [json.dumps({"a": text}, ensure_ascii=False) for text in texts]
    path.write_bytes("\r\n\n".join(lines).encode())
    assert [row["a"] for row in json_lines(path, "a")] == texts


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "cannot read annotations"),
        ('[{"a": 1}', "cannot read annotations"),
        ('{"a": 1}', "wanted a list of entries, got dict"),
        ("[1]", "entry 0 must be a mapping, got int"),
        ("[" * 100_000, "cannot read annotations"),
    ],
)
def test_a_file_that_is_no_list_of_entries_is_told(tmp_path, content, message):
    (tmp_path / "rows.json").write_text(content)
    with pytest.raises(UserError, match=rf"rows\.json.*{message}|{message}.*rows\.json"):
        json_rows(tmp_path / "rows.json", "a")
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n\n{"a"\n')
    with pytest.raises(UserError, match=r"rows\.jsonl: line 3"):
        json_lines(tmp_path / "rows.jsonl", "a")


def test_a_name_that_stands_twice_in_an_entry_is_refused(tmp_path):
    entry, file = '{"image": "a.jpg", "question": "one?", "question": "two?"}', tmp_path / "given"
    file.write_text(f"[{entry}]")
    with pytest.raises(UserError, match=r"given: .*'question' stands there twice"):
        json_rows(file, "image")
    file.write_text('{"image": "b.jpg"}\n' + entry)
    with pytest.raises(UserError, match="line 2: 'question' stands there twice"):
        json_lines(file, "image")
