"""PETAL (arXiv 2312.12458) as a PEFT tuner."""

from petx.tuners._register import register_tuner

__all__ = ["PetalConfig", "PetalModel"]

# The configuration names its PeftType, so the member must exist before the classes are used; registering needs both.
from petx.tuners.petal.config import PetalConfig
from petx.tuners.petal.model import PetalModel

register_tuner("petal", PetalConfig, PetalModel)
