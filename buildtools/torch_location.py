"""Finds the torch that petx will run with, without importing it.

pip builds in an isolated environment. Were torch a build requirement, pip would fetch a second torch into it:
gigabytes, and perhaps another version than the one petx is to run with. So torch is looked for in the user's
environments, and required only if there is none.
"""

import os
import runpy
import site
import sys
import sysconfig
import tomllib
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from buildtools import ROOT, stop


@dataclass(frozen=True)
class Torch:
    folder: Path  # the package; its headers and libraries lie in include/ and lib/
    version: str
    cuda: str | None  # the CUDA version it was built with


def torch_requirement():
    """The range of torch that petx supports, from the project's own metadata."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return next(r for r in map(Requirement, project["dependencies"]) if r.name == "torch")


def find_torch():
    """The :class:`Torch` that petx is to run with, or None."""
    chosen = os.environ.get("PETX_TORCH_PATH")
    for folder in [chosen, *_packages_of(chosen)] if chosen else _search_path():
        package = Path(folder, "torch")
        if (package / "version.py").is_file() and (package / "include").is_dir():
            facts = runpy.run_path(str(package / "version.py"))
            return Torch(package, facts["__version__"], facts["cuda"])
    if chosen:
        stop(f"PETX_TORCH_PATH={chosen} holds no torch; name the site-packages folder that does, or its environment")
    return None


def supported_torch():
    """Like :func:`find_torch`, and stops the build if there is none or it is outside the supported range."""
    wanted, torch = torch_requirement(), find_torch()
    if torch is None:
        stop(
            f"no torch found. Install {wanted} first, or name the environment that holds it in PETX_TORCH_PATH, "
            "or install petx with pip's build isolation, which then fetches torch itself"
        )
    if not wanted.specifier.contains(torch.version, prereleases=True):
        stop(f"torch {torch.version} in {torch.folder.parent} is not supported; petx needs {wanted}")
    return torch


def build_requirements():
    """What an isolated build needs besides pyproject.toml's list: nothing, or torch if none is installed."""
    if find_torch() is None:
        return [str(torch_requirement())]
    supported_torch()
    return []


def _search_path():
    """Folders that may hold the user's torch, the most telling first."""
    yield from sys.path
    # pip runs an isolated build with the target's interpreter, whose own folders are hidden from sys.path only.
    yield from (sysconfig.get_path("platlib"), sysconfig.get_path("purelib"), *site.getsitepackages())
    if sys.prefix == sys.base_prefix:
        yield site.getusersitepackages()
    for environment in _environments():
        yield from _packages_of(environment)


def _environments():
    """Environments a build may have been started from, when it runs in a fresh one (`python -m build`, uv)."""
    yield from filter(None, map(os.environ.get, ("VIRTUAL_ENV", "CONDA_PREFIX")))
    config = Path(sys.prefix, "pyvenv.cfg")
    for line in config.read_text().splitlines() if config.is_file() else ():
        key, _, value = line.partition(" = ")
        if key == "command":  # "/env/bin/python -m venv ...", written by venv
            yield Path(value.partition(" -m venv")[0]).parent.parent
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        if Path(folder).parent.joinpath("pyvenv.cfg").is_file():
            yield Path(folder).parent
    yield ROOT / ".venv"


def _packages_of(environment):
    return [Path(environment, "lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")]
