"""Prompt tuning: learnt tokens in the encoder's input, through an MLP as in VL-PET's table."""

from typing import Any

import torch
from torch import nn

from petx.baselines.base import Baseline
from petx.hosts import Host
from petx.options import option


class Prompt(Baseline):
    """Prompt tokens between text and image in the encoder, made by an MLP, and the visual embedding."""

    name, title, colour, order, lr = "prompt", "prompt tuning ({prompt_tokens} tokens)", "#F0E442", 56, "lr_prompt"
    methods = ("vlpet",)
    options = {
        "lr_prompt": (float, option(3e-3, "peak learning rate of prompt tuning", above=0)),
        "prompt_tokens": (int, option(40, "prompt tuning: tokens, at least 1", least=1)),
        "prompt_hidden": (
            int,
            option(800, "prompt tuning: hidden width of the MLP that makes them, at least 1", least=1),
        ),
    }

    def misfit(self, host: type[Host]) -> str | None:
        return None if host.takes_prompt else "a place for prompt tokens in its encoder"

    def build(self, host: type[Host], model: Any, settings: Any) -> nn.Module:
        model.requires_grad_(False)
        for module in host.always(model):
            module.requires_grad_(True)
        width = model.get_input_embeddings().weight.shape[1]
        prompt = SoftPrompt(settings.prompt_tokens, width, settings.prompt_hidden)
        model.soft_prompt = prompt.to(model.device)
        return model


class SoftPrompt(nn.Module):
    """``P = MLP(E)``: ``tokens`` learnt vectors of ``width``, through ``width -> hidden -> width`` with a tanh."""

    def __init__(self, tokens: int, width: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(tokens, width))
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, width))
        nn.init.normal_(self.embedding, std=0.02)

    def forward(self) -> torch.Tensor:
        """``[tokens, width]``."""
        return self.mlp(self.embedding)


BASELINE = Prompt()
