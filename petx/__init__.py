"""petx: fused CUDA and CPU kernels for parameter-efficient tuning of vision-language models."""

from petx import functional as functional
from petx import nn as nn
from petx.version import __version__ as __version__

__all__ = ["__version__", "functional", "nn"]
