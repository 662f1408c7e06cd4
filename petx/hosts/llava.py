"""LLaVA: an image encoder, a projector and a decoder-only language model, which PETAL adapts."""

from typing import Any

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from petx.errors import UserError
from petx.hosts._instructed import Instructed

ENCODERS = ("clip_vision_model", "siglip_vision_model")


class Llava(Instructed):
    """LLaVA, a published checkpoint with a CLIP or SigLIP encoder.

    The image's tokens go where an instruction has ``<image>``, else in front of it, behind the first token if that
    begins a text.
    """

    model_types = ("llava",)
    words, order = "LLaVA", 2
    model_class = LlavaForConditionalGeneration
    marks = 1
    full_words = " of projector and language model"

    def __init__(self, config: Any, tokenizers: Any) -> None:
        super().__init__(config, tokenizers)
        if self.pad is None:
            self.pad = tokenizers.eos_token_id  # masked, so that any token would do
        self.image_token, self.begin = config.image_token_id, tokenizers.bos_token_id

    @classmethod
    def visual_tokens(cls, config: Any) -> int:
        vision = config.vision_config
        if vision.model_type not in ENCODERS:
            raise UserError(
                f"host: LLaVA's image encoder must be one of {', '.join(ENCODERS)}, got {vision.model_type}"
            )
        whole = config.vision_feature_select_strategy == "full" and vision.model_type == "clip_vision_model"
        return (vision.image_size // vision.patch_size) ** 2 + int(whole)

    @classmethod
    def is_decoder_only(cls, config: Any) -> bool:
        return True

    @classmethod
    def full(cls, model: Any) -> list[nn.Parameter]:
        """Projector and language model, as in LLaVA's second stage."""
        inner = model.model
        parts = (inner.multi_modal_projector, inner.language_model, model.lm_head)
        return [parameter for part in parts for parameter in part.parameters()]

    @classmethod
    def lora(cls, rank: int, settings: Any) -> dict[str, Any]:
        """Query, key and value of every attention of the language model; its scale is 1."""
        return dict(
            r=rank,
            lora_alpha=rank,
            lora_dropout=settings.adapter_dropout,
            target_modules=r".*language_model\.layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj)",
        )

    def _prompt(self, item: dict) -> torch.Tensor:
        tokens = item["input_ids"]
        marked = (tokens == self.image_token).nonzero().flatten().tolist()
        if marked:
            before, after = tokens[: marked[0]], tokens[marked[0] + 1 :]
        else:
            first = int(len(tokens) > 0 and tokens[0].item() == self.begin)
            before, after = tokens[:first], tokens[first:]
        return torch.cat([before, self.image_tokens, after])


HOST = Llava
