"""Sizes of the PETAL paper's InstructBLIP models, to be built on the meta device and counted."""

from typing import TYPE_CHECKING, Any

import torch

from petx.errors import UserError

if TYPE_CHECKING:
    import transformers

__all__ = ["INSTRUCT_BLIPS", "build_instruct_blip"]

# EVA-ViT-g/14 at 224 x 224, and a BERT-base with cross-attention in every other layer and one token more ([DEC]).
VISION: dict[str, Any] = {
    "hidden_size": 1408,
    "intermediate_size": 6144,
    "num_hidden_layers": 39,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}
QFORMER: dict[str, Any] = {
    "vocab_size": 30523,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "cross_attention_frequency": 2,
    "encoder_hidden_size": 1408,
}
FLAN_T5: dict[str, Any] = {"vocab_size": 32128, "d_kv": 64, "num_layers": 24, "feed_forward_proj": "gated-gelu"}
FLAN_T5 |= {"decoder_start_token_id": 0}
INSTRUCT_BLIPS: dict[str, tuple[str, dict[str, Any]]] = {
    "flan-t5-xl": ("T5Config", FLAN_T5 | {"d_model": 2048, "d_ff": 5120, "num_heads": 32}),
    "flan-t5-xxl": ("T5Config", FLAN_T5 | {"d_model": 4096, "d_ff": 10240, "num_heads": 64}),
    "vicuna-7b": (
        "LlamaConfig",
        {
            "vocab_size": 32001,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
        },
    ),
}
"""name -> class name of the language model's configuration, and its fields."""


def build_instruct_blip(language_model: str) -> "transformers.InstructBlipForConditionalGeneration":
    """InstructBLIP with the named language model, on the meta device: shapes without memory.

    Raises UserError for a name that is not in :data:`INSTRUCT_BLIPS`.
    """
    import transformers  # here, so that the names above stay quick to read

    if not isinstance(language_model, str) or language_model not in INSTRUCT_BLIPS:
        raise UserError(f"language_model must be one of {', '.join(INSTRUCT_BLIPS)}, got {language_model!r}")
    text_config, facts = INSTRUCT_BLIPS[language_model]
    config = transformers.InstructBlipConfig(
        vision_config=transformers.InstructBlipVisionConfig(**VISION),
        qformer_config=transformers.InstructBlipQFormerConfig(**QFORMER),
        text_config=getattr(transformers, text_config)(**facts),
        num_query_tokens=32,
    )
    with torch.device("meta"):
        model = transformers.InstructBlipForConditionalGeneration(config)
        if model.language_model.lm_head.weight is model.language_model.get_input_embeddings().weight:
            # Flan-T5 was published with an output layer of its own; transformers 5 ties the two in every T5 it creates.
            model.language_model.lm_head.weight = torch.nn.Parameter(model.language_model.lm_head.weight.clone())
    return model
