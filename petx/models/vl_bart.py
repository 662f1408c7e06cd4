"""VL-BART: BART whose encoder reads text and visual tokens (arXiv 2102.02779, as VL-PET uses it)."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, BartConfig, BartForConditionalGeneration
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.bart.modeling_bart import BartEncoder
from transformers.utils.output_capturing import capture_outputs

from petx.models._visual_inputs import VisualInputs
from petx.models.visual_embedding import VisualEmbedding

__all__ = ["VLBartConfig", "VLBartForConditionalGeneration"]


class VLBartConfig(BartConfig):
    """BART's configuration with ``visual_width`` (width of the visual features), ``max_images``, and
    ``retrieval_width`` (of the space that images and captions are compared in; 0: no retrieval)."""

    model_type = "vl_bart"

    visual_width: int = 2048
    max_images: int = 2
    retrieval_width: int = 0


class VLBartEncoder(BartEncoder):
    """BART's encoder; with ``vision [B, V, d]`` it runs on [text; vision] and normalises only the text."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        vision: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """As BartEncoder's; with ``vision`` the mask is over [text; vision], ``[B, L + V]``."""
        if vision is None:
            return super().forward(input_ids, attention_mask, inputs_embeds, **kwargs)
        return self._forward_joint(input_ids, attention_mask, vision, **kwargs)

    dropout: float
    layerdrop: float

    @capture_outputs
    def _forward_joint(
        self, input_ids: Tensor, attention_mask: Tensor | None, vision: Tensor, **kwargs: Any
    ) -> BaseModelOutput:
        # As BartEncoder.forward, which has no seam between the norm and the dropout of its embeddings.
        text = self.embed_tokens(input_ids)
        text = self.layernorm_embedding(text + self.embed_positions(input_ids))
        hidden = torch.cat([text, vision.to(text.dtype)], dim=1)
        hidden = nn.functional.dropout(hidden, p=self.dropout, training=self.training)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden, attention_mask=attention_mask)
        for layer in self.layers:
            if self.training and self.layerdrop > 0 and torch.rand([]) < self.layerdrop:
                continue
            hidden = layer(hidden, mask, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden)


class VLBartForConditionalGeneration(VisualInputs, BartForConditionalGeneration):
    """BART with a ``visual_embedding``; forward and generate take ``visual_features [B, V, visual_width]``.

    They also take ``boxes [B, V, 4]``, ``image_ids [B, V]`` (:class:`VisualEmbedding`) and ``visual_attention_mask
    [B, V]``, zero for padding. Without ``visual_features`` it is the plain model. Raises UserError naming what of them
    does not fit.
    """

    config_class = VLBartConfig

    def __init__(self, config: VLBartConfig) -> None:
        super().__init__(config)
        self.model.encoder = VLBartEncoder(config)
        sizes: Any = config  # transformers types its fields as optional
        self.visual_embedding = VisualEmbedding(
            config.visual_width, sizes.d_model, max_images=config.max_images, init_std=sizes.init_std
        )
        self.post_init()

    def encode_joint(
        self, encoder: Any, input_ids: Tensor, vision: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> BaseModelOutput:
        """Encoder output on [text; vision]."""
        return encoder(input_ids=input_ids, attention_mask=mask, vision=vision, **kwargs)


AutoConfig.register(VLBartConfig.model_type, VLBartConfig, exist_ok=True)
AutoModelForSeq2SeqLM.register(VLBartConfig, VLBartForConditionalGeneration, exist_ok=True)
