"""BART that reads visual features: VL-PET's host, small and pretrained here or a published BART."""

from typing import Any

from torch import nn

from petx.hosts._retrieval import retrieval_width
from petx.hosts._visual_encoder_decoder import VisualEncoderDecoder
from petx.models import VLBartConfig, VLBartForConditionalGeneration


class VLBart(VisualEncoderDecoder):
    """BART with a visual embedding; the small host of VL-PET's main job."""

    model_types = ("bart", "vl_bart")
    words, order = "BART", 0
    model_class = VLBartForConditionalGeneration
    small_settings = (
        *("width", "layers", "attention_heads", "ffn", "init_std", "dropout", "feature_width", "image_size"),
        *("host_steps", "host_batch_size", "host_lr"),
    )

    @classmethod
    def dropouts(cls, rate: float) -> dict[str, float]:
        return dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), rate)

    @classmethod
    def small(cls, settings: Any, data: Any) -> nn.Module:
        """A BART of a million parameters with random weights, over the words of ``data.tokenizer``."""
        tokenizer = data.tokenizer
        more: dict[str, Any] = cls.dropouts(settings.dropout) | retrieval_width(settings)
        config = VLBartConfig(
            vocab_size=len(tokenizer),
            d_model=settings.width,
            encoder_layers=settings.layers,
            decoder_layers=settings.layers,
            encoder_attention_heads=settings.attention_heads,
            decoder_attention_heads=settings.attention_heads,
            encoder_ffn_dim=settings.ffn,
            decoder_ffn_dim=settings.ffn,
            max_position_embeddings=64,
            init_std=settings.init_std,
            scale_embedding=True,
            **more,
            visual_width=settings.feature_width,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.bos_token_id,
            forced_eos_token_id=None,
        )
        return VLBartForConditionalGeneration(config)


HOST = VLBart
