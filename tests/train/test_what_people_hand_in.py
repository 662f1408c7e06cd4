"""What people hand in: photos as cameras write them, every picture mode, annotations as projects publish them,
feature files of every kind, and paths of every kind."""

import errno
import json
import os
import pwd
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from petx import tasks
from petx.cli import main as petx
from petx.data.cache import cache_dir
from petx.data.pictures import _TURNED, ORIENTATION, check_picture, read_picture
from petx.data.rows import json_lines, json_rows
from petx.data.stores import ImageFiles
from petx.errors import UserError
from petx.files import (
    LOCK,
    damaged_files,
    held,
    read_json,
    require_writable,
    user_path,
    what_is_damaged,
    written_whole,
)
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


# ---- files and folders ----


def test_written_files_have_the_umasks_mode(tmp_path):
    from safetensors.torch import save_file

    before = os.umask(0o027)
    try:
        with written_whole(tmp_path / "out") as target:
            target.mkdir()
            save_file({"a": torch.zeros(1)}, target / "a.safetensors")
        with written_whole(tmp_path / "b.safetensors") as target:
            save_file({"a": torch.zeros(1)}, target)
    finally:
        os.umask(before)
    for path in (tmp_path / "out" / "a.safetensors", tmp_path / "b.safetensors"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_paths_are_read_once_and_refused_in_words(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/a", "--output") == tmp_path / "a"
    for text in ("", "  ", "a\0"):
        with pytest.raises(UserError, match="--output must be a path"):
            user_path(text, "--output")


@pytest.mark.parametrize("odd", ["", "runs/here"])
def test_a_home_that_is_no_whole_path_gives_way_to_the_systems_record(monkeypatch, odd):
    """An empty one would stand for the root: a cache in /.cache."""
    own = Path(pwd.getpwuid(os.getuid()).pw_dir)
    for name in ("PETX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", odd)
    assert user_path("~/a", "--output") == own / "a" and user_path("~", "--output") == own
    assert cache_dir() == own / ".cache" / "petx"
    monkeypatch.setattr(os, "getuid", lambda: 2**31)
    with pytest.raises(UserError, match="no home folder .*the system knows no user"):
        user_path("~/a", "--output")
    with pytest.raises(UserError, match="no home folder for the cache .*set PETX_CACHE"):
        cache_dir()


def test_what_is_proven_writable_or_held_in_vain_leaves_no_folder(tmp_path):
    require_writable(tmp_path / "a" / "b", "--output")
    assert not list(tmp_path.iterdir())
    with held(tmp_path / "a" / "b", "--output"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not list(tmp_path.iterdir())
    with held(tmp_path / "a" / "b", "--output"):
        (tmp_path / "a" / "file").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]
    (tmp_path / "nowhere").symlink_to("gone")
    for path in (tmp_path / "a" / "file" / "below", tmp_path / "nowhere" / "x", tmp_path / ("n" * 300)):
        with pytest.raises(UserError, match="--output: cannot write in '"):
            require_writable(path, "--output")


def test_a_folder_that_cannot_be_listed_is_told(tmp_path, monkeypatch, capsys):
    def listdir(path="."):
        if str(path) == str(tmp_path):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listed(path)

    listed = os.listdir
    monkeypatch.setattr(os, "listdir", listdir)
    assert petx(["data", "check", str(tmp_path)]) == 2
    assert f"PATH: cannot read the folder '{tmp_path}': Permission denied" in capsys.readouterr().err


def test_a_folder_is_held_by_one_process(tmp_path):
    with held(tmp_path, "output_dir"):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with held(tmp_path, "output_dir"):
                    pass
            except UserError as error:
                code = 0 if f"is in use: another run is writing there (process {os.getppid()}" in str(error) else 2
            os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
    assert not list(tmp_path.iterdir())


def test_a_folder_is_held_once_in_a_process(tmp_path):
    """A record lock lets its own process in, and is lost as soon as that closes the file again."""
    with held(tmp_path, "output_dir"):
        for same in (tmp_path, tmp_path / "." / "x" / ".."):
            with pytest.raises(UserError, match="is in use: .*this one"), held(same, "output_dir"):
                pass
        child = os.fork()
        if child == 0:
            try:
                with held(tmp_path, "output_dir"):
                    os._exit(1)
            except UserError:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    with held(tmp_path, "output_dir"):
        pass


def test_a_lock_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / LOCK).mkdir()  # as another user's file is: nobody here may write it
    with pytest.raises(UserError, match=r"output_dir: cannot write .*petx-lock .*: remove that file"):
        with held(tmp_path, "output_dir"):
            pass


def test_an_interruption_between_two_renamings_loses_nothing(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("x")
    replace = os.replace

    def stopped(source, target):
        if os.path.basename(os.path.dirname(source)).startswith(".out-") and not str(source).endswith("replaced"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt), written_whole(tmp_path / "out") as target:
        target.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]


def test_a_killed_process_holds_nothing(tmp_path):
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        with held(tmp_path, "output_dir"):
            os.write(told, b"x")
            signal_never_comes = os.pipe()[0]
            os.read(signal_never_comes, 1)
    os.read(ready, 1)
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert list(tmp_path.iterdir())  # the file is left behind
    with held(tmp_path, "output_dir"):
        pass


def test_damaged_files_are_named(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(9)}, tmp_path / "a.safetensors")
    torch.save({"a": torch.zeros(9)}, tmp_path / "a.pt")
    (tmp_path / "a.json").write_text("{}")
    assert damaged_files(tmp_path) == {}
    for name in ("a.safetensors", "a.pt", "a.json"):
        whole = (tmp_path / name).read_bytes()
        for content in (b"", whole[: len(whole) // 2], b"\0" * len(whole)):
            (tmp_path / name).write_bytes(content)
            assert what_is_damaged(tmp_path / name) is not None, (name, content)
    np.savez_compressed(tmp_path / "b.npz", a=np.arange(4096))
    content = bytearray((tmp_path / "b.npz").read_bytes())
    content[200:240] = b"\xff" * 40
    (tmp_path / "b.npz").write_bytes(content)
    assert what_is_damaged(tmp_path / "b.npz") is not None
    (tmp_path / "b.npz").unlink()
    assert set(damaged_files(tmp_path)) == {"a.safetensors", "a.pt", "a.json"}
    for content in ("", "[]", "{}", "{"):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(UserError, match=r"a\.json is damaged.*; remove it"):
            read_json(tmp_path / "a.json", "seed", hint="remove it")


def test_tensors_that_may_not_be_read_are_not_called_missing(tmp_path, monkeypatch):
    """As safetensors does, of a colleague's file."""
    from safetensors.torch import save_file

    from petx import files
    from petx.train import checkpoints
    from petx.tuners import loading

    file = tmp_path / loading.TENSORS
    save_file({"a": torch.zeros(1)}, file)

    def refuse(path, mode):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    for module in (files, checkpoints, loading):
        monkeypatch.setattr(module, "open", refuse, raising=False)
    assert "Permission denied" in what_is_damaged(file)
    for read in (lambda: loading._tensors(tmp_path), lambda: checkpoints.load_tensors({}, file, "")):
        with pytest.raises(UserError, match=f"{file} .*cannot be read: .*Permission denied"):
            read()
