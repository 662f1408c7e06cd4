"""Builds petx._C, as setuptools' script and as the PEP 517 backend that pyproject.toml names.

A backend of its own so that an isolated build uses the torch that is installed already (buildtools/torch_location.py).
"""

import tomllib

import setuptools
from packaging.requirements import Requirement
from setuptools import Extension, setup
from setuptools.build_meta import *  # noqa: F403  (the hooks not named below)

from buildtools import ROOT, stop
from buildtools.compile import BuildExtension
from buildtools.torch_location import build_requirements


def get_requires_for_build_wheel(config_settings=None):
    return build_requirements()


def get_requires_for_build_editable(config_settings=None):
    return build_requirements()


def get_requires_for_build_sdist(config_settings=None):
    return []


def check_setuptools():
    """End the build if setuptools is older than pyproject.toml asks for, which a build without isolation does not look
    at: an older one would call the licence invalid."""
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    needed = next(one for one in map(Requirement, asked) if one.name == "setuptools")
    if not needed.specifier.contains(setuptools.__version__):
        stop(f"building needs {needed}, and there is {setuptools.__version__}: pip install --upgrade setuptools")


if __name__ == "__main__":
    check_setuptools()
    # Sources are found by BuildExtension; MANIFEST.in carries them into the sdist.
    setup(ext_modules=[Extension("petx._C", sources=[])], cmdclass={"build_ext": BuildExtension})
