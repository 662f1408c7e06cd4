"""VL-PET itself."""

from typing import Any

from peft import get_peft_model
from torch import nn

from petx.baselines.base import Baseline
from petx.hosts import Host
from petx.tuners import VLPetConfig


class VLPet(Baseline):
    """VL-PET: adapters and gate in the encoder, value adapters in the decoder, encoder norms, visual embedding."""

    name, title, colour, order = "vlpet", "VL-PET-{level}", "#D55E00", 20
    methods = ("vlpet",)

    def build(self, host: type[Host], model: nn.Module, settings: Any) -> nn.Module:
        return get_peft_model(model, vlpet_config(settings))

    sized = build  # what other baselines are made as large as


def vlpet_config(settings: Any) -> VLPetConfig:
    """The tuner's configuration for the recipe's ``settings``."""
    return VLPetConfig(
        task_type="SEQ_2_SEQ_LM",
        granularity=settings.level,
        rank=settings.rank,
        heads=settings.heads,
        gate_rank=settings.gate_rank,
        decoder_rank=settings.decoder_rank,
        scale=settings.scale,
        zero_init_up=settings.zero_init or None,
        zero_init_gate=settings.zero_init or None,
    )


BASELINE = VLPet()
