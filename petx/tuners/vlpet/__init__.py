"""VL-PET (arXiv 2308.09804) as a PEFT tuner."""

from petx.tuners._register import register_tuner

__all__ = ["VLPetConfig", "VLPetModel"]

# The configuration names its PeftType, so the member must exist before the classes are used; registering needs both.
from petx.tuners.vlpet.config import VLPetConfig
from petx.tuners.vlpet.model import VLPetModel

register_tuner("vlpet", VLPetConfig, VLPetModel)
