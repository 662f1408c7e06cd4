"""Feature files: h5 grids of images and npz frames of videos, told by file, shape and type where they do not fit."""

import h5py
import numpy as np
import pytest
import torch

from petx.data.stores import H5Features, NpzFeatures
from petx.errors import UserError

WIDTH = 8


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: np.float32(1), r"\[\], one number; wanted \[V, 8\]"),
        (lambda: np.zeros((4, 8), "S3"), "not real numbers"),
        (lambda: np.zeros((4, 8), np.complex64), "not real numbers"),
        (lambda: np.zeros((4, 8), bool), "not real numbers"),
        (lambda: np.full((4, 8), np.nan, np.float32), "values that are not finite"),
        (lambda: np.zeros((0, 8), np.float32), r"are \[0, 8\]"),
        (lambda: np.zeros(8, np.float32), r"are \[8\], of width 8"),
        (lambda: None, "must be a data set .*, got a group"),
    ],
)
def test_feature_files_name_shape_and_type(tmp_path, make, message):
    values = make()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if values is None:
            file.create_group("a/features")
        else:
            file["a/features"] = values
    with pytest.raises(UserError, match=rf"a\.h5: .*{message}"):
        H5Features(tmp_path, WIDTH, 4)("a")
    if values is not None:
        store = NpzFeatures(tmp_path, WIDTH, 4)
        store.path(("tv", "a")).parent.mkdir(parents=True)
        np.savez(store.path(("tv", "a")), features=values)
        with pytest.raises(UserError, match=rf"a\.npz: .*{message.replace('V, 8', 'T, 8')}"):
            store(("tv", "a"))


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f2", ">f8", "<i2", "u1"])
def test_features_of_every_number_are_read(tmp_path, kind):
    values = np.arange(32).reshape(4, 8).astype(kind)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a/features"] = values
    assert torch.equal(H5Features(tmp_path, WIDTH, 4)("a")[0], torch.arange(32.0).view(4, 8))


@pytest.fixture
def stores(tmp_path):
    """A store of three good h5 files and one of three good npz files, with a function that writes another first or
    second or third."""
    h5, npz = H5Features(tmp_path, WIDTH, 4), NpzFeatures(tmp_path, WIDTH, 4)
    npz.path(("tv", "a")).parent.mkdir(parents=True)

    def write(name, values):
        with h5py.File(h5.path(name), "w") as file:
            if values is not None:
                file[f"{name}/features"] = values
        np.savez(npz.path(("tv", name)), **({} if values is None else {"features": values}))

    for name in "abc":
        write(name, np.ones((4, WIDTH), np.float32))
    return h5, npz, write


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: np.zeros((4, 7), np.float32), r"are \[4, 7\], of width 7; wanted"),
        (lambda: np.zeros((4, 8), np.complex64), "not real numbers"),
        (lambda: np.array([["a"] * 8] * 4, "S3"), "not real numbers"),
        (lambda: np.float32(1), "one number"),
        (lambda: np.zeros((0, 8), np.float32), r"are \[0, 8\]"),
        (lambda: None, "cannot read"),
    ],
)
@pytest.mark.parametrize("where", "abc")
def test_every_file_is_looked_at_before_training(stores, where, make, message):
    h5, npz, write = stores
    h5.check("abc"), npz.check([("tv", name) for name in "abc"])
    write(where, make())
    with pytest.raises(UserError, match=rf"{where}\.h5: .*{message}"):
        h5.check("abc")
    with pytest.raises(UserError, match=rf"{where}\.npz: .*{message}"):
        npz.check([("tv", name) for name in "abc"])


def test_files_cut_short_and_grids_that_cannot_be_pooled_are_found_before_training(stores):
    h5, npz, write = stores
    write("c", np.zeros((5, WIDTH), np.float32))
    npz.check([("tv", "c")])
    with pytest.raises(UserError, match=r"c\.h5: 5 visual tokens cannot be pooled to visual_tokens=4"):
        h5.check("abc")
    for store, key in ((h5, "b"), (npz, ("tv", "b"))):
        path = store.path(key)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(UserError, match=rf"{path.name}: cannot read"):
            store.check([key])


def test_values_are_not_read_before_training(stores, monkeypatch):
    """Checking costs a file's header, not its features."""
    h5, npz, _ = stores
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda *_: pytest.fail("values of an h5 file were read"))
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda *_: pytest.fail("values of an npz file were read"))
    h5.check("abc"), npz.check([("tv", name) for name in "abc"])
