"""A machine that has cards, a cache folder, and nothing chosen yet."""

import os

import pytest

from petx import ops
from petx.certify import cards as machine
from petx.certify import certificate, choice
from tests.certify.fake import BUILD, H100, FakeCards


class Library:
    """What is asked of petx._C, with CUDA kernels in it."""

    def __init__(self, file):
        self.__file__, self.real = str(file), ops._C

    def __getattr__(self, name):
        return getattr(self.real, name)

    def build_info(self):
        return self.real.build_info() | BUILD | {"cuda": True, "cuda_version": "13.0"}


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A process that has chosen nothing, of a user who has set nothing, with a library for GPUs; its file is there."""
    if ops._C is None:
        pytest.skip(f"needs the compiled library's operators: {ops._load_error}")
    for name in ("PETX_CUDA_KERNELS", "PETX_CERTIFICATE", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PETX_CACHE", str(tmp_path / "cache"))
    library = tmp_path / "_C.so"
    library.write_bytes(b"kernels")
    monkeypatch.setattr(ops, "_C", Library(library))
    stems = [stem for stem, _ in ops._fused]
    monkeypatch.setattr(ops, "_fused", ops._fused | {(stem, "cuda") for stem in stems})
    for name, kind in (("_answers", dict), ("_of", dict), ("_told", set)):
        monkeypatch.setattr(choice, name, kind())
    certificate.library_facts.cache_clear()
    yield tmp_path
    certificate.library_facts.cache_clear()


@pytest.fixture
def cards(fresh, monkeypatch):
    """One H100 whose child finds every kernel right."""
    put = FakeCards(H100)
    monkeypatch.setattr(machine, "cards", put)
    return put


@pytest.fixture
def read_only(fresh):
    """The cache folder's parent cannot be written; root, who can write anything, gets a file in its place."""
    if os.geteuid() == 0:
        (fresh / "cache").write_text("not a folder")
    else:
        (fresh / "cache").mkdir()
        (fresh / "cache").chmod(0o500)
    return fresh / "cache"
