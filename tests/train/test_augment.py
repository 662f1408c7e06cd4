"""Augmentation of training pictures: what each draw does, held to arithmetic on pixels."""

import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageOps

from petx.data import augment
from petx.data.instructions import plain, plain_caption
from petx.data.stores import ImageFiles
from petx.train.petal import arguments


def noise(width=60, height=40, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def smooth(width=48, height=48):
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([2 * x + y, x + 2 * y, 3 * x], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def test_parts_have_the_released_areas_and_forms():
    draw, width, height = random.Random(0), 400, 300
    boxes = [augment.part((width, height), draw) for _ in range(2000)]
    shares, ratios = [], []
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        shares.append((right - left) * (bottom - top) / (width * height))
        ratios.append((right - left) / (bottom - top))
    assert 0.49 < min(shares) < 0.52 and 0.97 < max(shares) <= 1.0
    assert 0.74 < min(ratios) < 0.78 and 1.3 < max(ratios) < 1.34
    assert 0.95 < np.exp(np.mean(np.log(ratios))) < 1.35  # large parts of a wide picture are wide
    assert len({box[:2] for box in boxes}) > 500


@pytest.mark.parametrize("size, wanted", [((400, 10), (193, 0, 206, 10)), ((10, 400), (0, 193, 10, 206))])
def test_a_picture_of_no_such_form_gives_its_middle(size, wanted):
    assert augment.part(size, random.Random(0)) == wanted


def test_an_operation_in_two_is_done_and_three_in_ten_change_nothing(monkeypatch):
    names, done = list(augment._OPERATIONS), Counter()
    for name in names:
        counted = lambda picture, draw, name=name: done.update([name]) or picture  # noqa: E731
        monkeypatch.setitem(augment._OPERATIONS, name, counted)
    draw = random.Random(0)
    for _ in range(5000):
        augment.rand_augment(noise(), draw)
    assert len(names) == 10 and sum(done.values()) == pytest.approx(5000, rel=0.05)  # two, each with a half
    assert all(count == pytest.approx(500, rel=0.2) for count in done.values())


@pytest.mark.parametrize("sign", [1, -1])
def test_geometry_by_pixels(sign):
    """OpenCV's warpAffine, by hand: a pixel's value is read where the inverse map leads, between its neighbours."""
    picture, grey = smooth(), np.array(augment.GREY)
    pixels = np.asarray(picture, dtype=float)

    def read(x, y):
        left, top = int(np.floor(x)), int(np.floor(y))
        a, b = x - left, y - top
        rows = [pixels[top + j, left : left + 2] for j in (0, 1)]
        return (1 - b) * ((1 - a) * rows[0][0] + a * rows[0][1]) + b * ((1 - a) * rows[1][0] + a * rows[1][1])

    factor = sign * augment.SHEAR
    for made, inverse in (
        (augment.shear_x(picture, factor), lambda x, y: (x - factor * y, y)),
        (augment.shear_y(picture, factor), lambda x, y: (x, y - factor * x)),
        (augment._affine(picture, (1, 0, sign * 5.0, 0, 1, 0)), lambda x, y: (x + sign * 5, y)),
    ):
        got = np.asarray(made, dtype=float)
        for x, y in [(20, 20), (11, 33), (30, 9)]:
            assert np.allclose(got[y, x], read(*inverse(x, y)), atol=1.01)
    corner = np.asarray(augment._affine(picture, (1, 0, 5.0 * sign, 0, 1, 0)))[0, 47 if sign > 0 else 0]
    assert (corner == grey).all()


def test_a_turn_keeps_the_middle_and_tones_are_pillows(monkeypatch):
    picture = smooth()
    turned = np.asarray(augment._turned(picture, 15.0), dtype=float)
    assert np.allclose(turned[24, 24], np.asarray(picture, dtype=float)[24, 24], atol=1.01)
    assert (turned[0, 0] == augment.GREY).all() and not np.allclose(turned[24, 40], np.asarray(picture)[24, 40], atol=2)
    dull = Image.fromarray((np.asarray(picture) // 2 + 40).astype(np.uint8))
    draw = random.Random(0)
    assert augment._OPERATIONS["auto-contrast"](dull, draw).tobytes() == ImageOps.autocontrast(dull).tobytes()
    assert augment._OPERATIONS["equalize"](dull, draw).tobytes() == ImageOps.equalize(dull).tobytes()
    assert augment._OPERATIONS["sharpness"](dull, draw).tobytes() == dull.tobytes()


@pytest.mark.parametrize("kind", augment.KINDS)
def test_a_draw_decides_everything_and_the_size_is_the_hosts(tmp_path, kind):
    noise().save(tmp_path / "a.png")

    def processor(picture, return_tensors):
        return {"pixel_values": [np.asarray(picture.resize((20, 16), Image.Resampling.NEAREST))]}

    files = ImageFiles(tmp_path, processor, kind)
    files._size = (20, 16)
    pictures = [files("a", draw)[0].tobytes() for draw in ("0 1", "0 1", "0 2", "0 3")]
    assert pictures[0] == pictures[1] and len(set(pictures)) == (1 if kind == "none" else 3)
    evaluated = np.asarray(noise().resize((20, 16), Image.Resampling.NEAREST)).tobytes()
    assert files("a")[0].tobytes() == evaluated


def test_the_hosts_size_is_asked_of_its_processor(tmp_path):
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    assert ImageFiles(tmp_path, processor, "randaugment")._size == (24, 24)


def test_questions_lose_marks_and_captions_get_spaces():
    assert plain("Well-known:left,(right).") == "well-knownleft,right"
    assert plain_caption("A man.He  runs (fast)!") == "a man he runs fast"
    assert plain_caption("one#two " * 40) == " ".join(["one two"] * 25)


def test_the_papers_presets_augment_as_released():
    kinds = {
        name: arguments.read_preset(f"paper-{name}")["augment"] for name in ("okvqa", "gqa", "flickr30k", "textcaps")
    }
    assert kinds == dict(okvqa="randaugment", gqa="randaugment", flickr30k="resized-crop", textcaps="resized-crop")


def test_a_picture_that_is_left_to_the_processor_keeps_its_size(tmp_path):
    from petx.data.conversations import PictureFiles

    noise().save(tmp_path / "a.png")
    for kind in ("crop-flip", "resized-crop", "randaugment"):
        picture, _ = PictureFiles(tmp_path, None, kind)("a", "0 1")
        assert picture.size == (60, 40) and picture.tobytes() != noise().tobytes()
