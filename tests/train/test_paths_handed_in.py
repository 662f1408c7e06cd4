"""What people hand in: paths of every kind, files that may not be read, held folders, questions and hosts."""

import errno
import os
import pwd
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import cbook
from PIL import Image
from transformers import BartConfig, T5Config

from petx import hosts
from petx.cli import main as petx
from petx.data.cache import cache_dir
from petx.data.pictures import check_picture
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
from petx.train import answering, plots


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
    assert user_path("~/a", "--output") == tmp_path / "a" == user_path("~//a", "--output")
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


# ---- questions and hosts ----


@pytest.mark.parametrize("text", [r"does $\frac{a}$ cost $5 or $7?", r"\$ \\$ $", "$x_1$"])
def test_dollars_are_dollars_in_a_figure(tmp_path, text):
    """A pair of them would be mathematics, which may not even be read: the answer is drawn after it was computed."""
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    answer = answering.Answer(text, 0.5, [])
    answering.draw(tmp_path / "a.png", text, answer, tmp_path / "drawn.png")
    study = dict(axes=["cell"], metric=text, description=text, beside={"frozen host": {text: 1.0}})
    run = {"test": {text: 2.0}}
    row = dict(labels={"cell": text}, place={"cell": text}, arm="vlpet", runs=[run], test=dict(mean=2.0, spread=None))
    plots.write_study(study | {"rows": [row]}, tmp_path / "study.png")
    assert not cbook.is_math_text(plots.drawn(text))
    assert check_picture(tmp_path / "drawn.png") is check_picture(tmp_path / "study.png") is None


def test_a_question_beyond_the_models_places_is_told():
    model = SimpleNamespace(config=BartConfig(max_position_embeddings=8))
    answering._check_length(model, {"input_ids": torch.zeros(1, 8)})
    with pytest.raises(UserError, match="QUESTION is 9 tokens .* at most 8"):
        answering._check_length(model, {"input_ids": torch.zeros(1, 9)})
    answering._check_length(SimpleNamespace(config=T5Config()), {"input_ids": torch.zeros(1, 9999)})


def test_a_host_without_weights_is_told(own, tmp_path):
    shutil.copytree(own / "bart", tmp_path / "bart")
    for file in (tmp_path / "bart").glob("*.safetensors"):
        file.unlink()
    kind = hosts.find("vl_bart")
    given = SimpleNamespace(host=str(tmp_path / "bart"), dropout=0.0, feature_width=8, data="image-text", tasks=[])
    given.recipe, given.datasets = "vlpet", {}
    with pytest.raises(UserError, match=f"host: cannot load '{tmp_path / 'bart'}': .*model.safetensors"):
        hosts.pretrained(kind, given, kind.tokenizers(own / "bart"))
