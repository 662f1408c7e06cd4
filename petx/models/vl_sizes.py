"""Sizes of the VL-PET paper's BART-base and T5-base, to be built on the meta device and counted."""

from typing import Any

import torch

from petx.errors import UserError
from petx.models.vl_bart import VLBartConfig, VLBartForConditionalGeneration
from petx.models.vl_t5 import VLT5Config, VLT5ForConditionalGeneration

__all__ = ["BACKBONES", "FEATURES", "build_skeleton"]

# Vocabularies as VL-PET grows them: BART gets 100 extra_id and 100 vis_extra_id tokens; T5 has the extra_ids among its
# 32,100 tokens, so that with 100 vis_extra_ids 72 rows are missing in its table of 32,128.
BACKBONES: dict[str, dict[str, Any]] = {
    "bart-base": {
        "model": VLBartForConditionalGeneration,
        "config": VLBartConfig,
        "facts": {
            "vocab_size": 50265 + 200,
            "max_position_embeddings": 1024,
            "d_model": 768,
            "encoder_layers": 6,
            "decoder_layers": 6,
            "encoder_attention_heads": 12,
            "decoder_attention_heads": 12,
            "encoder_ffn_dim": 3072,
            "decoder_ffn_dim": 3072,
            "dropout": 0.1,
            "attention_dropout": 0.1,
            "activation_dropout": 0.1,
        },
    },
    "t5-base": {
        "model": VLT5ForConditionalGeneration,
        "config": VLT5Config,
        "facts": {
            "vocab_size": 32128 + 72,
            "d_model": 768,
            "d_kv": 64,
            "d_ff": 3072,
            "num_layers": 12,
            "num_decoder_layers": 12,
            "num_heads": 12,
            "dropout_rate": 0.1,
        },
    },
}
"""name -> ``model`` and ``config`` classes and the configuration's ``facts``."""

FEATURES: dict[str, int] = {"image": 2048, "video": 512}
"""Width of the visual features: CLIP-RN101's grid for images, CLIP-ViT's frames for video."""


def build_skeleton(
    backbone: str, features: str = "image"
) -> VLBartForConditionalGeneration | VLT5ForConditionalGeneration:
    """The named backbone with a visual embedding for ``features``, on the meta device: shapes without memory.

    Raises UserError for a name that is not in :data:`BACKBONES` or :data:`FEATURES`.
    """
    for name, value, known in (("backbone", backbone, BACKBONES), ("features", features, FEATURES)):
        if not isinstance(value, str) or value not in known:
            raise UserError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    entry = BACKBONES[backbone]
    with torch.device("meta"):
        return entry["model"](entry["config"](visual_width=FEATURES[features], **entry["facts"]))
