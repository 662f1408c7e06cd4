"""The cache, the packages in it, easy-VQA's splits, image features, tasks and batches."""

import base64
import collections
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from PIL import Image

from petx import files
from petx.cli import main as petx
from petx.data import cache, features, packages
from petx.errors import UserError
from petx.tasks import easy_vqa
from petx.tasks.easy_vqa import Question

# ---- cache ----


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "value.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), files.written_whole(path) as target:
        target.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"old": 1}
    files.write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"new": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["value.json"]  # no scratch is left


def test_a_folder_is_replaced_whole(tmp_path):
    for text in ("one", "two"):
        with files.written_whole(tmp_path / "folder") as target:
            target.mkdir()
            (target / text).write_text(text)
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["two"]


def test_fingerprint_tells_parts_apart():
    assert cache.fingerprint("a", b"bc") == cache.fingerprint("a", b"bc")
    keys = {cache.fingerprint(*parts) for parts in [("a", b"bc"), ("a", b"b", b"c"), ("ab", b"c"), ("a", "bc"), ("a",)]}
    assert len(keys) == 5


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--output: cannot write in .*file/below"):
        files.require_writable(tmp_path / "file" / "below", "--output")


# ---- packages ----


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A made-up wheel that a made-up pip "downloads"; gives the Wheel with its true SHA-256."""
    file = tmp_path / "made_up-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("made_up_module/__init__.py", "ANSWER = 42\n")

    def pip(command, **kwargs):
        assert "--no-deps" in command and command[-1] == "made-up==1.0"
        shutil.copy(file, command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.delitem(sys.modules, "made_up_module", raising=False)
    monkeypatch.setenv("PETX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packages.subprocess, "run", pip)
    wheel = packages.Wheel("made-up", "1.0", "made_up_module", cache.file_sha256(file))
    monkeypatch.setitem(
        packages.SOURCES, "made-up", packages.Source("made-up", (wheel,), "1 KB", "MIT", "nothing", "no")
    )
    return wheel


def test_get_unpacks_what_was_checked(wheel):
    assert packages.locate("made-up") is None
    with pytest.raises(UserError, match="made-up not found; get it with: petx data get made-up"):
        packages.require("made-up")
    (folder,) = packages.get("made-up")
    assert packages.require("made-up") == {"made_up_module": folder / "made_up_module"}
    assert packages.load_module("made_up_module", folder / "made_up_module").ANSWER == 42


def test_get_refuses_another_file(wheel, monkeypatch):
    wrong = packages.Wheel("made-up", "1.0", "made_up_module", "0" * 64)
    monkeypatch.setitem(packages.SOURCES, "made-up", packages.Source("made-up", (wrong,), "", "", "", ""))
    with pytest.raises(UserError, match=f"SHA-256 is {wheel.sha256}, wanted 0000"):
        list(packages.get("made-up"))
    assert packages.locate("made-up") is None


def test_get_says_why_pip_failed(wheel, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: first\nERROR: no route to host\n")
    monkeypatch.setattr(packages.subprocess, "run", lambda command, **kwargs: failed)
    with pytest.raises(UserError, match="could not fetch made-up==1.0: ERROR: no route to host"):
        list(packages.get("made-up"))


def test_the_command_lists_and_fetches(wheel, capsys):
    assert petx(["data", "list"]) == 0
    listed = capsys.readouterr().out
    assert "easy-vqa: " in listed and "made-up 1.0" in listed and listed.rstrip().endswith("missing")
    assert petx(["data", "get", "made-up", "nothing"]) == 2  # the wrong name is told before anything is fetched
    assert packages.locate("made-up") is None
    assert petx(["data", "get", "made-up"]) == 0
    (folder,) = packages.locate("made-up").values()
    assert str(folder.parent) in capsys.readouterr().out


@pytest.mark.parametrize("added", ["file", "link to a file", "link to a folder"])
def test_what_was_added_to_code_in_the_cache_is_found(tmp_path, monkeypatch, added):
    """A folder of a module's name comes before the module, and a linked one is not walked through."""
    monkeypatch.setenv("PETX_CACHE", str(tmp_path / "cache"))
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"A = 1\n").digest()).decode().rstrip("=")
    record = f"made_up/__init__.py,sha256={digest},6\nmade_up-1.0.dist-info/RECORD,,\n"
    known = packages.Wheel("made-up", "1.0", "made_up", "0" * 64, record=hashlib.sha256(record.encode()).hexdigest())
    folder = packages.cached_folder(known)
    (folder / "made_up").mkdir(parents=True)
    (folder / "made_up" / "__init__.py").write_text("A = 1\n")
    (folder / "made_up-1.0.dist-info").mkdir()
    (folder / "made_up-1.0.dist-info" / "RECORD").write_text(record)
    assert packages.what_changed(known) is None
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "__init__.py").write_text("A = 2\n")
    new = folder / "made_up" / ("utils" if added.endswith("folder") else "utils.py")
    if added == "file":
        new.write_text("A = 2\n")
    else:
        new.symlink_to(other if added.endswith("folder") else other / "__init__.py")
    assert packages.what_changed(known) == f"{new} is not of made-up"


def test_unknown_data_is_named():
    with pytest.raises(UserError, match="unknown data 'clevr'; there are: easy-vqa, efficientnet-lite0"):
        packages.source("clevr")


# ---- easy-VQA ----


@pytest.fixture(scope="module")
def questions(petx_cache):
    folder = packages.require("easy-vqa")["easy_vqa"]
    return {split: easy_vqa.read_questions(folder, split) for split in ("train", "test")}


def test_easy_vqa_is_the_known_set(questions):
    assert len(questions["train"]) == 38575 and len(questions["test"]) == 9673
    assert len(easy_vqa.images_of(questions["train"])) == 4000 and len(easy_vqa.images_of(questions["test"])) == 1000
    kinds = collections.Counter(question.kind for question in questions["test"])
    assert kinds["yes/no"] == 7136
    assert len({question.answer for question in questions["train"]}) == 13


def test_development_split_is_by_image(questions):
    train, dev = easy_vqa.split_by_image(questions["train"], 400)
    assert len(easy_vqa.images_of(dev)) == 400 and len(train) + len(dev) == 38575
    assert not {question.image for question in train} & {question.image for question in dev}
    assert easy_vqa.split_by_image(questions["train"], 400)[1] == dev
    assert easy_vqa.split_by_image(questions["train"], 400, seed=1)[1] != dev


def test_captions_come_from_what_questions_only():
    told = [
        Question("what color is the shape?", "red", "1.png"),
        Question("what shape is present?", "circle", "1.png"),
        Question("what is the blue shape?", "triangle", "2.png"),
        Question("what shape is present?", "circle", "3.png"),
        Question("is there a teal shape?", "yes", "3.png"),
    ]
    assert easy_vqa.captions(told) == [("1.png", "a red circle"), ("2.png", "a blue triangle")]


def test_matches_are_captions_of_the_image_or_of_another(questions):
    """A wrong one differs in one word from the image's caption, half are wrong, and no held-out image is there."""
    train, dev = easy_vqa.split_by_image(questions["train"], 400)
    matches = easy_vqa.EasyVQA(None, train, dev, []).matches()
    caption_of = dict(easy_vqa.captions(train))
    assert len(matches) == 3 * len(caption_of) and not {one.images[0] for one in matches} & {q.image for q in dev}
    answers = collections.Counter()
    for one in matches:
        told, (image,), ((answer, _),) = one.text.split(), one.images, one.answers
        differing = set(told[1:]) - {*caption_of[image].split(), "shape"}
        assert len(differing) == (answer == "no") and told[0] == "a" and len(told) <= 3
        answers[answer] += 1
    assert set(answers) == {"yes", "no"} and 0.45 < answers["yes"] / len(matches) < 0.55


def test_blind_answers_by_hand():
    train = [Question("a?", answer, "") for answer in ("yes", "yes", "no")] + [Question("b?", "no", "")] * 4
    asked = [Question("a?", "no", ""), Question("b?", "no", ""), Question("c?", "yes", "")]
    assert easy_vqa.blind_answers(train, asked) == ["yes", "no", "no"]  # an unseen question gets the majority answer
    assert easy_vqa.majority_answer(train) == "no"


def test_blind_baseline_is_the_published_level(questions):
    guesses = easy_vqa.blind_answers(questions["train"], questions["test"])
    right = sum(guess == question.answer for guess, question in zip(guesses, questions["test"], strict=True))
    assert 100 * right / len(guesses) == pytest.approx(67.0, abs=0.05)


# ---- image features ----


def test_features_are_the_packages_own(petx_cache):
    folders = packages.require("easy-vqa", "efficientnet-lite0")
    paths = [folders["easy_vqa"] / "data" / "test" / "images" / f"{i}.png" for i in range(3)]
    encoder = features.ImageEncoder()
    pixels = torch.stack([features.read_image(path, 64) for path in paths])
    got = encoder(pixels)

    network = packages.load_module("efficientnet_lite_pytorch", folders["efficientnet_lite_pytorch"])
    other = network.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(encoder.weights_file)).eval()
    with torch.no_grad():
        wanted = other.extract_features((pixels.permute(0, 3, 1, 2).float() - 127) / 128)  # [3, 1280, 2, 2]
    assert got.shape == (3, 4, 1280)
    torch.testing.assert_close(got, wanted.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)
    assert got.std() > 0.1


def test_cached_features_follow_the_images(petx_cache, tmp_path, monkeypatch):
    passes = []
    encode = features.ImageEncoder.__call__
    monkeypatch.setattr(features.ImageEncoder, "__call__", lambda self, x: passes.append(len(x)) or encode(self, x))
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, colour in zip(paths, ("red", "blue"), strict=True):
        Image.new("RGB", (64, 64), colour).save(path)
    first = features.image_features(paths, 64)
    assert torch.equal(features.image_features(paths, 64), first) and passes == [2]  # the second from the cache
    assert features.image_features(paths, 96).shape == (2, 9, 1280) and passes == [2, 2]
    Image.new("RGB", (64, 64), "green").save(paths[1])
    changed = features.image_features(paths, 64)
    assert passes == [2, 2, 2]
    torch.testing.assert_close(changed[0], first[0])
    assert not torch.allclose(changed[1], first[1])


@pytest.mark.parametrize("content", [None, b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_missing_or_broken_image_is_named(tmp_path, content):
    path = tmp_path / "picture.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="picture.png"):
        features.read_image(path, 64)


def test_a_truncated_image_is_named(tmp_path):
    whole, cut = tmp_path / "whole.png", tmp_path / "cut.png"
    Image.effect_noise((64, 64), 80).convert("RGB").save(whole)
    cut.write_bytes(whole.read_bytes()[:1000])
    with pytest.raises(UserError, match="cut.png"):
        features.read_image(cut, 64)


def test_any_size_and_mode_is_read(tmp_path):
    path = tmp_path / "wide.png"
    Image.new("RGBA", (200, 50), (255, 0, 0, 255)).save(path)
    pixels = features.read_image(path, 64)
    assert pixels.shape == (64, 64, 3) and pixels.dtype == torch.uint8
    assert pixels[0, 0].tolist() == [255, 0, 0]


def test_grid_boxes():
    assert features.grid_boxes(2).tolist() == [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]


def test_features_that_cannot_be_kept_are_used_all_the_same(petx_cache, tmp_path, monkeypatch, capsys):
    """A cache that several share is often only to be read."""
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    (tmp_path / "full").write_text("")
    monkeypatch.setattr(features, "cache_dir", lambda: tmp_path / "full")
    assert features.image_features([tmp_path / "a.png"], 32).shape == (1, 1, 1280)
    assert "not kept for another time" in capsys.readouterr().err


def test_another_width_than_the_encoders_is_told_before_any_work(petx_cache):
    from petx.train import vlpet

    given = vlpet.RECIPE.settings(steps=1, feature_width=512)
    with pytest.raises(UserError, match="feature_width is 1280 for data in packages, .* got 512"):
        vlpet.RECIPE.prepared_host(given)
