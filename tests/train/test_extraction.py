"""``petx data features``: feature files of pictures and videos by any vision model, resumable, by several processes."""

import errno
import json
import os
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ResNetConfig,
    ResNetModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from petx.cli import main as petx
from petx.data import extraction
from petx.data.stores import H5Features, NpzFeatures
from petx.errors import UserError

SIDE, PATCH, WIDTH = 16, 4, 8
_SIZES = dict(hidden_size=WIDTH, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
_SIZES |= dict(image_size=SIDE, patch_size=PATCH)


def _clip():
    text = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    text |= dict(bos_token_id=0, eos_token_id=1, pad_token_id=1)
    return CLIPModel(CLIPConfig(vision_config=_SIZES, text_config=text, projection_dim=6))


MODELS = {
    "vit": lambda: ViTModel(ViTConfig(**_SIZES)),
    "clip": _clip,
    "dinov2": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**_SIZES, num_register_tokens=3)),
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**_SIZES, vision_use_head=False)),  # pools nothing
    "resnet": lambda: ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, WIDTH], depths=[1, 1])),
}


def write_model(folder, kind="vit"):
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    model.save_pretrained(folder)
    square = dict(height=SIDE, width=SIDE)
    if kind == "clip":
        CLIPImageProcessorPil(size=dict(shortest_edge=SIDE), crop_size=square).save_pretrained(folder)
    else:
        ViTImageProcessorPil(size=square).save_pretrained(folder)
    return model


def write_pictures(folder, names):
    folder.mkdir(parents=True)
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    return folder, write_model(folder)


def features(*arguments):
    return petx(["data", "features", *map(str, arguments)])


def pixels(folder, path):
    encoder = extraction.Encoder(str(folder))
    return encoder.pixels([Image.open(path).convert("RGB")])


@pytest.mark.parametrize("kind", MODELS)
def test_the_grid_of_any_model_is_what_the_tasks_read(tmp_path, kind):
    model = write_model(tmp_path / "model", kind)
    images = write_pictures(tmp_path / "images", ["a.png", "train2014/b.jpg", "c.PNG"])
    out = tmp_path / "features"
    assert features("--model", tmp_path / "model", "--images", images, "--output", out, "--batch_size", 2) == 0
    assert sorted(path.name for path in out.glob("*.h5")) == ["a.h5", "b.h5", "c.h5"]
    read = pixels(tmp_path / "model", images / "a.png")
    with torch.no_grad():
        hidden = getattr(model, "vision_model", model)(pixel_values=read).last_hidden_state
    wanted = hidden.flatten(2).transpose(1, 2)[0] if hidden.dim() == 4 else hidden[0, hidden.shape[1] - 16 :]
    tokens = len(wanted)
    got, boxes = H5Features(out, WIDTH, tokens)("train2014/a.png")
    assert got.shape == wanted.shape and boxes.shape == (tokens, 4)
    assert torch.allclose(got, wanted, atol=1e-5)
    H5Features(out, WIDTH, 1).check(["a", "b.jpg", "c"])  # a square, pooled


@pytest.mark.parametrize("kind, width", [("clip", 6), ("vit", WIDTH), ("siglip", WIDTH), ("resnet", WIDTH)])
def test_a_video_is_a_vector_a_frame(tmp_path, kind, width):
    model = write_model(tmp_path / "model", kind)
    frames = write_pictures(tmp_path / "frames", [f"v{v}/{i:03d}.png" for v in range(2) for i in range(3)])
    out = tmp_path / "vis_features" / "tv" / "clip-vit"
    assert features("--model", tmp_path / "model", "--videos", frames, "--output", out, "--batch_size", 2) == 0
    got, _ = NpzFeatures(tmp_path / "vis_features", width, 4)(("tv", "v1"))
    assert got.shape == (4, width) and not got[3].any() and got[:3].any(1).all()
    read = pixels(tmp_path / "model", frames / "v1" / "001.png")
    with torch.no_grad():
        found = model.get_image_features(pixel_values=read) if kind == "clip" else model(pixel_values=read)
    wanted = found.last_hidden_state.mean(1) if kind == "siglip" else found.pooler_output.flatten(1)
    assert torch.allclose(got[1], wanted[0], atol=1e-5)


def test_what_is_there_is_left_and_the_rest_computed(vit, tmp_path, capsys):
    folder, _ = vit
    images = write_pictures(tmp_path / "images", ["a.png", "b.png"])
    (images / "b.png").write_bytes(b"no picture")
    command = ("--model", folder, "--images", images, "--output", tmp_path / "out", "--batch_size", 1)
    assert features(*command) == 2
    assert "b.png as an image" in capsys.readouterr().err
    before = (tmp_path / "out" / "a.h5").stat().st_mtime_ns
    assert not (tmp_path / "out" / "b.h5").exists()
    Image.new("RGB", (16, 16), "red").save(images / "b.png")
    assert features(*command) == 0
    assert "2 images, 1 there already" in capsys.readouterr().out
    assert (tmp_path / "out" / "a.h5").stat().st_mtime_ns == before
    with h5py.File(tmp_path / "out" / "b.h5") as file:
        assert file["b/features"].shape == (16, WIDTH) and file["b/features"].dtype == np.float32
    assert features(*command) == 0
    assert "2 images, 2 there already" in capsys.readouterr().out


def test_frames_come_in_the_order_of_their_numbers(tmp_path):
    names = [f"a/{i}.png" for i in (1, 2, 10, 100)] + ["b/f1.png", "b/f1.png-2.png"]
    pictures = write_pictures(tmp_path / "frames", names)
    todo = extraction.plan("x", pictures, tmp_path / "out", videos=True, batch_size=1)
    assert [[frame.name for frame in frames] for frames in todo.files.values()] == [
        ["1.png", "2.png", "10.png", "100.png"],
        ["f1.png", "f1.png-2.png"],
    ]


def test_pictures_in_linked_folders_are_found_and_an_unreadable_one_is_told(tmp_path, monkeypatch):
    """A search passes over what it cannot list, as if nothing were there."""
    pictures = write_pictures(tmp_path / "pictures", ["own/a.png"])
    (pictures / "linked").symlink_to(write_pictures(tmp_path / "elsewhere", ["b.png", "deep/c.png"]))
    (pictures / "own" / "around").symlink_to(pictures)
    (pictures / "latest").symlink_to(pictures / "own")  # found once, under its own name
    (tmp_path / "elsewhere" / "back").symlink_to(pictures / "own")
    todo = extraction.plan("x", pictures, tmp_path / "out", videos=False, batch_size=1)
    assert sorted(todo.files) == ["a", "b", "c"]

    def scandir(path):
        if str(path).endswith("deep"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    listed = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="deep"):
        extraction.plan("x", pictures, tmp_path / "out", videos=False, batch_size=1)


class Threads(ThreadPoolExecutor):
    """In place of processes, which take half a minute to import torch. They load their models in turn: transformers
    patches itself while it loads one, and two at once would leave the patch behind."""

    def __init__(self, count, context, initializer, **options):
        assert context.get_start_method() == "spawn"
        turn = threading.Lock()

        def begin(*given):
            with turn:
                initializer(*given)

        super().__init__(count, initializer=begin, **options)


@pytest.mark.parametrize("pool", [Threads, pytest.param(ProcessPoolExecutor, marks=pytest.mark.nightly)])
def test_several_at_a_time_compute_the_same_and_tell_a_broken_picture(vit, tmp_path, monkeypatch, capsys, pool):
    monkeypatch.setattr(extraction.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(extraction, "ProcessPoolExecutor", pool)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # of this process, whose pool is of threads
    folder, _ = vit
    images = write_pictures(tmp_path / "images", [f"{i}.png" for i in range(4)])
    (images / "3.png").write_bytes(b"no picture")
    command = ("--model", folder, "--images", images, "--batch_size", 1, "--output", tmp_path / "out")
    assert features(*command, "--processes", 2) == 2
    assert "3.png as an image" in capsys.readouterr().err
    whole = [path.stem for path in (tmp_path / "out").glob("*.h5")]
    assert whole and "3" not in whole and not list((tmp_path / "out").glob(".*"))
    encoder = extraction.Encoder(str(folder))
    for name in whole:
        with h5py.File(tmp_path / "out" / f"{name}.h5") as file:
            got = torch.from_numpy(file[f"{name}/features"][()])
        assert torch.allclose(got, encoder.grids([Image.open(images / f"{name}.png")])[0], atol=1e-6)


def refusals(tmp_path):
    images = write_pictures(tmp_path / "images", ["a.png", "x/b.png"])
    twice = write_pictures(tmp_path / "twice", ["a.png", "x/a.jpg"])
    (tmp_path / "none").mkdir()
    other = tmp_path / "other"
    other.mkdir()
    (other / extraction.NOTE).write_text(json.dumps({"model": "clip", "videos": False}))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "a.h5").touch()
    return {
        ("--images", tmp_path / "nowhere"): "--images must be a folder",
        ("--images", tmp_path / "none"): "has no picture",
        ("--images", twice): "would both write a.h5",
        ("--videos", images): "lies in no video's folder",
        ("--images", images, "--batch_size", 0): "--batch_size must be at least 1, got 0",
        ("--images", images, "--processes", 0): "--processes must be from 1 to",
        ("--images", images, "--output", other): "holds features of model 'clip', not",
        ("--images", images, "--output", foreign): "that petx data features did not make",
        ("--images", images, "--model", tmp_path / "none"): "is no vision model with an image processor",
    }


def test_what_cannot_be_is_refused(vit, tmp_path, capsys):
    folder, _ = vit
    for more, message in refusals(tmp_path).items():
        assert features("--model", folder, "--output", tmp_path / "out", *more) == 2, more
        assert message in capsys.readouterr().err, more
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("gives", ["nothing", "a text", "several"])
def test_a_model_without_one_vector_a_picture_is_told(tmp_path, monkeypatch, gives):
    write_model(tmp_path)
    encoder = extraction.Encoder(str(tmp_path))
    hidden, frame = torch.rand(2, 17, WIDTH), [Image.new("RGB", (SIDE, SIDE))] * 2
    monkeypatch.setattr(encoder, "tower", lambda pixel_values: encoder.found)
    encoder.found = SimpleNamespace(last_hidden_state=hidden)  # no pooler_output at all
    encoder.tower.config = encoder.model.config
    assert torch.equal(encoder.vectors(frame), hidden[:, 1:].mean(1))
    found = {"nothing": {}, "a text": dict(pooler_output="x"), "several": dict(pooler_output=hidden[0])}[gives]
    encoder.found = SimpleNamespace(**found)
    with pytest.raises(UserError, match=f"--model '{tmp_path}' gives no "):
        encoder.vectors(frame)
