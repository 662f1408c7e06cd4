"""PEFT tuners; importing this package registers them, so that ``peft.get_peft_model`` takes their configurations."""

from petx.tuners.loading import load_adapter
from petx.tuners.petal import PetalConfig, PetalModel
from petx.tuners.report import adapted, describe, parameter_counts
from petx.tuners.vlpet import VLPetConfig, VLPetModel

__all__ = [
    "PetalConfig",
    "PetalModel",
    "VLPetConfig",
    "VLPetModel",
    "adapted",
    "describe",
    "load_adapter",
    "parameter_counts",
]
