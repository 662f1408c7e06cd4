"""The trainer with VL-PET's released weight decay."""

from torch import nn

from petx.train.trainer import PetTrainer


class VLPetTrainer(PetTrainer):
    """Adds to its base what decays in the released code."""

    def paper_decay(self, model: nn.Module) -> list[str]:
        """All but names with "bias" or "LayerNorm.weight", which no norm weight of BART or T5 contains: those decay."""
        names = [name for name, _ in model.named_parameters()]
        return [name for name in names if "bias" not in name and "LayerNorm.weight" not in name]
