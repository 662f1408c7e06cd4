"""VL-T5: T5 whose encoder reads text and visual tokens (arXiv 2102.02779, as VL-PET uses it)."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.t5.modeling_t5 import T5Attention, T5LayerNorm

from petx.models._visual_inputs import VisualInputs
from petx.models.visual_embedding import VisualEmbedding

__all__ = ["VLT5Config", "VLT5ForConditionalGeneration"]


class VLT5Config(T5Config):
    """T5's configuration with ``visual_width`` (width of the visual features), ``max_images``, and
    ``retrieval_width`` (of the space that images and captions are compared in; 0: no retrieval)."""

    model_type = "vl_t5"

    visual_width: int = 2048
    max_images: int = 2
    retrieval_width: int = 0


class TextBiasAttention(T5Attention):
    """T5's attention of the encoder's first block, which computes the position bias of all: here between text tokens
    only, zero for pairs with a visual token (position ``text_length`` and up)."""

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        *args: Any,
        position_bias: Tensor | None = None,
        text_length: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """As T5Attention's, on ``hidden_states [B, L + V, d]`` whose first ``text_length`` tokens are text."""
        if position_bias is None and text_length is not None:
            padding = hidden_states.shape[1] - text_length
            position_bias = self.compute_bias(text_length, text_length, device=hidden_states.device)
            position_bias = nn.functional.pad(position_bias, (0, padding, 0, padding))
        return super().forward(hidden_states, mask, *args, position_bias=position_bias, **kwargs)


class VLT5ForConditionalGeneration(VisualInputs, T5ForConditionalGeneration):
    """T5 with a ``visual_embedding``; forward and generate take ``visual_features [B, V, visual_width]``.

    They also take ``boxes [B, V, 4]``, ``image_ids [B, V]`` (:class:`VisualEmbedding`) and ``visual_attention_mask
    [B, V]``, zero for padding. Without ``visual_features`` it is the plain model. Raises UserError naming what of them
    does not fit.
    """

    config_class = VLT5Config

    def __init__(self, config: VLT5Config) -> None:
        super().__init__(config)
        blocks: Any = self.encoder.block
        first = blocks[0].layer[0]
        first.SelfAttention = TextBiasAttention(self.encoder.config, has_relative_attention_bias=True, layer_idx=0)
        self.visual_embedding = VisualEmbedding(
            config.visual_width,
            config.d_model,
            max_images=config.max_images,
            norm=partial(T5LayerNorm, eps=config.layer_norm_epsilon),
            init="default",
        )
        self.post_init()

    def encode_joint(
        self, encoder: Any, input_ids: Tensor, vision: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> BaseModelOutput:
        """Encoder output on [text; vision]."""
        text = encoder.embed_tokens(input_ids)
        joint = torch.cat([text, vision.to(text.dtype)], dim=1)
        return encoder(inputs_embeds=joint, attention_mask=mask, text_length=input_ids.shape[1], **kwargs)


AutoConfig.register(VLT5Config.model_type, VLT5Config, exist_ok=True)
AutoModelForSeq2SeqLM.register(VLT5Config, VLT5ForConditionalGeneration, exist_ok=True)
