"""Builds petx._C, as setuptools' script and as the PEP 517 backend that pyproject.toml names.

A backend of its own so that an isolated build uses the torch that is installed already (buildtools/torch_location.py).
"""

from setuptools import Extension, setup
from setuptools.build_meta import *  # noqa: F403  (the hooks not named below)

from buildtools.compile import BuildExtension
from buildtools.torch_location import build_requirements


def get_requires_for_build_wheel(config_settings=None):
    return build_requirements()


def get_requires_for_build_editable(config_settings=None):
    return build_requirements()


def get_requires_for_build_sdist(config_settings=None):
    return []


if __name__ == "__main__":
    # Sources are found by BuildExtension; MANIFEST.in carries them into the sdist.
    setup(ext_modules=[Extension("petx._C", sources=[])], cmdclass={"build_ext": BuildExtension})
