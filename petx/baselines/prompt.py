"""Prompt tuning: learnt tokens in the encoder's input, through an MLP as in VL-PET's table."""

from typing import Any

import torch
from torch import nn

from petx.baselines.base import Baseline
from petx.errors import UserError
from petx.hosts import Host
from petx.options import option


class Prompt(Baseline):
    """Prompt tokens between text and image in the encoder, made by an MLP, and the visual embedding."""

    name, title, colour, order, lr = "prompt", "prompt tuning ({prompt_tokens} tokens)", "#F0E442", 56, "lr_prompt"
    methods = ("vlpet",)  # whose hosts' encoders read text and image together
    options = {
        "lr_prompt": (float, option(3e-3, "peak learning rate of prompt tuning")),
        "prompt_tokens": (int, option(40, "prompt tuning: tokens, at least 1")),
        "prompt_hidden": (int, option(800, "prompt tuning: hidden width of the MLP that makes them, at least 1")),
    }

    def check(self, settings: Any) -> None:
        for name in ("prompt_tokens", "prompt_hidden"):
            if getattr(settings, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(settings, name)}")

    def build(self, host: type[Host], model: nn.Module, settings: Any) -> nn.Module:
        model.requires_grad_(False)
        for module in host.always(model):
            module.requires_grad_(True)
        width = model.get_input_embeddings().weight.shape[1]
        prompt = SoftPrompt(settings.prompt_tokens, width, settings.prompt_hidden)
        attach(model, prompt.to(model.device))
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


def attach(model: nn.Module, prompt: SoftPrompt) -> None:
    """Put ``prompt`` between text and vision in the encoder of ``model``, a visual BART or T5.

    The encoder reads [text; prompt; vision], and the decoder attends to all of it.
    """
    model.soft_prompt = prompt
    encode, encode_joint = model._encode, model.encode_joint

    def widened(mask: torch.Tensor, text: int) -> torch.Tensor:
        ones = mask.new_ones(len(mask), len(prompt.embedding))
        return torch.cat([mask[:, :text], ones, mask[:, text:]], dim=1)

    def joint(
        encoder: nn.Module, input_ids: torch.Tensor, vision: torch.Tensor, mask: torch.Tensor, **more: Any
    ) -> Any:
        tokens = prompt().to(vision.dtype).expand(len(vision), -1, -1)
        vision = torch.cat([tokens, vision], dim=1)
        return encode_joint(encoder, input_ids, vision, widened(mask, input_ids.shape[1]), **more)

    def encoded(input_ids: torch.Tensor, *args: Any, **more: Any) -> tuple[Any, torch.Tensor]:
        output, mask = encode(input_ids, *args, **more)
        return output, widened(mask, input_ids.shape[1])

    model.encode_joint, model._encode = joint, encoded


BASELINE = Prompt()
