"""Features packed into one file: the same values, fewer files to open, told where they do not fit."""

import json
import os
import pickle

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from petx.cli import main
from petx.data import batches
from petx.data.packing import pack
from petx.data.stores import H5Features, NpzFeatures
from petx.errors import UserError

WIDTH, TOKENS = 8, 4


def h5(folder, *names, tokens=TOKENS, scale=1.0):
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file[f"{name}/features"] = scale * np.random.default_rng(i).standard_normal((tokens, WIDTH), np.float32)


def no_files(*_, **__):
    pytest.fail("a feature file was opened")


@pytest.mark.parametrize("tokens", [TOKENS, 16])
def test_packed_features_are_those_of_the_files(tmp_path, monkeypatch, tokens):
    h5(tmp_path, *"abc", tokens=tokens)
    before = H5Features(tmp_path, WIDTH, TOKENS).together("bca")[0]
    done = pack(tmp_path, visual_tokens=TOKENS, dtype="float32")
    assert (done.files, done.tokens, done.width, done.size) == (3, TOKENS, WIDTH, 3 * TOKENS * WIDTH * 4)
    monkeypatch.setattr(h5py, "File", no_files)
    store = H5Features(tmp_path, WIDTH, TOKENS)
    store.check("abc")
    assert torch.equal(store.together("bca")[0], before)
    assert torch.equal(store("images/c.jpg")[0], before[1])


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_store_of_h5_files_can_be_sent_to_another_process(tmp_path, is_packed):
    h5(tmp_path, *"ab")
    if is_packed:
        pack(tmp_path, visual_tokens=TOKENS, dtype="float32")
    store = H5Features(tmp_path, WIDTH, TOKENS)
    wanted = store.together("ba")[0]
    assert torch.equal(pickle.loads(pickle.dumps(store)).together("ba")[0], wanted)


def test_videos_are_packed_by_their_folder(tmp_path):
    store = NpzFeatures(tmp_path, WIDTH, TOKENS)
    folder = store.path(("tv", "a")).parent
    folder.mkdir(parents=True)
    for name, frames in (("a", 2), ("b", 9)):
        np.savez(folder / f"{name}.npz", features=np.random.default_rng(frames).standard_normal((frames, WIDTH)))
    keys = [("tv", "b"), ("tv", "a")]
    before = store.together(keys)[0]
    pack(folder, visual_tokens=TOKENS, dtype="float32")
    for name in "ab":
        (folder / f"{name}.npz").unlink()
    packed = NpzFeatures(tmp_path, WIDTH, TOKENS)
    packed.check(keys)
    assert torch.equal(packed.together(keys)[0], before)


def test_half_is_handed_over_as_half_unless_others_are_not(tmp_path):
    h5(tmp_path / "one", *"ab"), h5(tmp_path / "two", "c")
    exact = H5Features([tmp_path / "one", tmp_path / "two"], WIDTH, TOKENS).together("abc")[0]
    pack(tmp_path / "one", visual_tokens=TOKENS, dtype="float16")
    store = H5Features([tmp_path / "one", tmp_path / "two"], WIDTH, TOKENS)
    half, both = store.together("ba")[0], store.together("abc")[0]
    assert half.dtype == torch.float16 and torch.equal(half, exact[[1, 0]].half())
    assert both.dtype == torch.float32 and torch.equal(both, torch.cat([exact[:2].half().float(), exact[2:]]))


def test_the_first_folder_counts_whether_it_was_packed_or_not(tmp_path):
    h5(tmp_path / "one", "a"), h5(tmp_path / "two", "b", "a")
    exact = H5Features(tmp_path / "one", WIDTH, TOKENS)("a")[0]
    pack(tmp_path / "two", visual_tokens=TOKENS, dtype="float32")
    folders = [tmp_path / "one", tmp_path / "two"]
    assert torch.equal(H5Features(folders, WIDTH, TOKENS)("a")[0], exact)
    assert not torch.equal(H5Features(folders[::-1], WIDTH, TOKENS)("a")[0], exact)


def test_a_store_can_be_sent_to_another_process(tmp_path):
    folder = NpzFeatures(tmp_path, WIDTH, TOKENS).path(("tv", "a")).parent
    folder.mkdir(parents=True)
    np.savez(folder / "a.npz", features=np.ones((TOKENS, WIDTH), np.float32))
    pack(folder, visual_tokens=TOKENS, dtype="float32")
    store = NpzFeatures(tmp_path, WIDTH, TOKENS)
    store.check([("tv", "a")])
    assert torch.equal(pickle.loads(pickle.dumps(store))(("tv", "a"))[0], torch.ones(TOKENS, WIDTH))


def cut(folder):
    path = folder / "packed" / "features.npy"
    path.write_bytes(path.read_bytes()[:-4])


def fewer_names(folder):
    (folder / "packed" / "names.json").write_text(json.dumps({"names": ["a"]}))


def twice(folder):
    (folder / "packed" / "names.json").write_text('{"names": ["a", "a"]}')


@pytest.mark.parametrize(
    "damage, message",
    [
        (cut, "must have .* bytes, got"),
        (fewer_names, r"wanted \[1, V, F\].*got \[2, 4, 8\]"),
        (lambda folder: (folder / "packed" / "names.json").unlink(), r"names\.json is damaged or cannot be read"),
        (lambda folder: (folder / "packed" / "names.json").write_text('{"names": 3}'), "must be a list of texts"),
        (twice, r"names\.json: names has 'a' twice"),
        (lambda folder: (folder / "packed" / "features.npy").write_bytes(b"no"), "cannot read"),
        (lambda folder: np.save(folder / "packed" / "features.npy", np.zeros((2, 4, 8))), "got .* of float64"),
        (lambda folder: os.utime(folder / "b.h5", (4e9, 4e9)), r"b\.h5 was written after .*: pack that folder again"),
    ],
)
def test_what_was_packed_is_checked_before_training(tmp_path, damage, message):
    h5(tmp_path, *"ab")
    pack(tmp_path, visual_tokens=TOKENS, dtype="float32")
    H5Features(tmp_path, WIDTH, TOKENS).check("ab")
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        H5Features(tmp_path, WIDTH, TOKENS).check("ab")


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda path: path.unlink(), "could be read at the start and cannot now: No such file"),
        (lambda path: os.utime(path, (4e9, 4e9)), "was written anew while it was in use"),
    ],
)
def test_what_was_packed_is_told_if_it_changes_in_a_run(tmp_path, damage, message):
    h5(tmp_path, *"ab")
    pack(tmp_path, visual_tokens=TOKENS, dtype="float32")
    store = H5Features(tmp_path, WIDTH, TOKENS)
    store.check("ab")
    damage(tmp_path / "packed" / "features.npy")
    with pytest.raises(UserError, match=rf"features\.npy {message}"):
        store.together("ab")


def test_a_file_that_is_written_while_it_is_packed_is_told(tmp_path, monkeypatch):
    h5(tmp_path, *"ab")
    load = H5Features.load

    def load_and_write(self, file):
        found = load(self, file)
        os.utime(tmp_path / "a.h5", (4e9, 4e9))
        return found

    monkeypatch.setattr(H5Features, "load", load_and_write)
    with pytest.raises(UserError, match=r"a\.h5 was changed while it was packed; nothing was kept"):
        pack(tmp_path, visual_tokens=TOKENS, dtype="float32")
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("width, tokens", [(WIDTH, 9), (WIDTH + 1, TOKENS)])
def test_another_shape_than_it_was_packed_with_is_refused(tmp_path, width, tokens):
    h5(tmp_path, "a")
    pack(tmp_path, visual_tokens=TOKENS, dtype="float32")
    with pytest.raises(UserError, match=rf"4 tokens of width 8, wanted \[{tokens}, {width}\]"):
        H5Features(tmp_path, width, tokens).check("a")


def test_a_file_that_is_neither_packed_nor_there_is_named(tmp_path):
    h5(tmp_path, "a")
    pack(tmp_path, visual_tokens=TOKENS, dtype="float32")
    h5(tmp_path, "b")
    store = H5Features(tmp_path, WIDTH, TOKENS)
    store.check("ab")
    with pytest.raises(UserError, match=r"no feature file .*c\.h5"):
        store.check("abc")


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(dtype="bfloat16"), "--dtype must be float32 or float16, got 'bfloat16'"),
        (dict(visual_tokens=0), "--visual_tokens must be at least 1, got 0"),
        (dict(visual_tokens=3), r"a\.h5: 4 visual tokens cannot be pooled to visual_tokens=3"),
        (dict(dtype="float16"), r"a\.h5: features are up to .*, and float16 ends at 65504"),
    ],
)
def test_what_cannot_be_packed_leaves_nothing(tmp_path, given, message):
    h5(tmp_path, "a", scale=1e5)
    with pytest.raises(UserError, match=message):
        pack(tmp_path, **dict(visual_tokens=TOKENS, dtype="float32") | given)
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def test_the_command_says_what_it_packed(tmp_path, capsys):
    h5(tmp_path, *"ab")
    assert main(["data", "pack", str(tmp_path), "--visual_tokens", str(TOKENS), "--dtype", "float16"]) == 0
    assert f"2 files of {tmp_path} are in" in capsys.readouterr().out
    assert np.load(tmp_path / "packed" / "features.npy").shape == (2, TOKENS, WIDTH)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["data", "pack", str(empty)]) != 0
    assert "must hold feature files that end in .h5 or .npz, got none" in capsys.readouterr().err


def test_a_batch_in_one_tensor_is_not_copied_and_others_are():
    whole = torch.randn(3, 2, 4)
    assert batches.stacked(list(whole)).data_ptr() == whole.data_ptr()
    assert torch.equal(batches.stacked(list(whole)), whole)
    for parts in (list(whole)[::-1], list(whole)[:2], [*whole[:2], torch.randn(2, 4)], list(whole.transpose(1, 2))):
        made = batches.stacked(parts)
        assert made.data_ptr() != whole.data_ptr() and torch.equal(made, torch.stack(parts))
    for parts in (list(whole)[:2], list(whole)[1:], [whole[2], whole[0]], [whole[0], whole[1, :1]]):
        assert torch.equal(batches.joined(parts), torch.cat(parts))
    assert batches.joined(list(whole)[1:]).data_ptr() == whole[1].data_ptr()


class Rows:
    """What a worker of a data loader makes of a batch."""

    def __getitem__(self, index):
        return index


def in_one(indices):
    made = batches.room_for(len(indices), 2, dtype=torch.float16)
    for index, row in zip(indices, made, strict=True):
        row.fill_(index)
    return made, made.is_shared()


def test_a_worker_makes_its_batch_in_shared_memory():
    loader = DataLoader(Rows(), batch_sampler=[[3, 1]], collate_fn=in_one, num_workers=1)
    ((values, shared),) = list(loader)
    assert shared and torch.equal(values, torch.tensor([[3, 3], [1, 1]], dtype=torch.float16))
    assert not batches.room_for(2).is_shared()
