"""VL-PET (arXiv 2308.09804) as a PEFT tuner."""

from petx.tuners._register import register_tuner

__all__ = ["VLPetConfig", "VLPetModel", "describe", "parameter_counts"]

# The configuration names its PeftType, so the member must exist before the classes are used; registering needs both.
from petx.tuners.vlpet.config import VLPetConfig
from petx.tuners.vlpet.model import VLPetModel
from petx.tuners.vlpet.report import describe, parameter_counts

register_tuner("vlpet", VLPetConfig, VLPetModel)
