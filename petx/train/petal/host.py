"""The frozen host: a small InstructBLIP pretrained here, one around SmolLM2-135M, or a pretrained checkpoint."""

import torch
from transformers import AutoConfig, AutoProcessor, LlamaConfig, T5Config
from transformers.utils import logging

from petx.data import smollm2
from petx.data.instructions import QFORMER_TOKENIZER, Tokenizers
from petx.errors import UserError
from petx.models import FeatureInstructBlip, InstructBlip, feature_config

LEAST_STD = 1e-2  # features that never move are not blown up


def small(settings, run_data):
    """A :class:`petx.models.FeatureInstructBlip` of random weights, its features standardised over the training images.

    With ``language_model: smollm2`` the language model is SmolLM2-135M with its pretrained weights.
    """
    tokenizers = run_data.tokenizer
    pretrained = smollm2.load(tokenizers.text) if settings.language_model == "smollm2" else None
    text = pretrained.config if pretrained is not None else _TEXT[settings.language_model](settings, tokenizers.text)
    config = feature_config(
        settings.feature_width,
        text,
        queries=settings.queries,
        image_token=tokenizers.text.convert_tokens_to_ids(smollm2.IMAGE_TOKEN),
        vocab_size=len(tokenizers.qformer),
        hidden_size=settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.attention_heads,
        intermediate_size=settings.ffn,
        hidden_dropout_prob=settings.dropout,
        attention_probs_dropout_prob=settings.dropout,
        max_position_embeddings=settings.max_text,
        pad_token_id=tokenizers.qformer.pad_token_id,
        initializer_range=settings.init_std,
    )
    model = FeatureInstructBlip(config)
    if pretrained is not None:
        model.language_model = pretrained
    if run_data.feature_stats is not None:
        mean, std = run_data.feature_stats
        model.vision_model.mean.copy_(mean)
        model.vision_model.std.copy_(std.clamp(min=LEAST_STD))
    return model


def _t5(settings, tokenizer):
    return T5Config(
        vocab_size=len(tokenizer),
        d_model=settings.width,
        d_kv=settings.width // settings.attention_heads,
        d_ff=settings.ffn,
        num_layers=settings.lm_layers,
        num_decoder_layers=settings.lm_layers,
        num_heads=settings.attention_heads,
        dropout_rate=settings.dropout,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.bos_token_id,
    )


def _llama(settings, tokenizer):
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=settings.ffn,
        num_hidden_layers=settings.lm_layers,
        num_attention_heads=settings.attention_heads,
        num_key_value_heads=settings.attention_heads,
        max_position_embeddings=256,
        attention_dropout=settings.dropout,
        initializer_range=settings.init_std,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


_TEXT = {"t5": _t5, "llama": _llama}


def load(folder, settings):
    """The InstructBLIP in ``folder``, or of that hub name, in evaluation mode."""
    config = _config(folder)
    host_class = (
        FeatureInstructBlip if config.model_type == FeatureInstructBlip.config_class.model_type else InstructBlip
    )
    model = host_class.from_pretrained(folder, dtype=getattr(torch, settings.dtype))
    model.aggregation = settings.aggregation
    if not model.query_tokens.any():
        raise UserError(f"{folder}: query_tokens are all zero, so the queries of its Q-Former cannot differ")
    return model.eval()


def load_tokenizers(folder):
    """:class:`Tokenizers` of a host saved by petx, or of an InstructBLIP checkpoint's processor."""
    if _config(folder).model_type == FeatureInstructBlip.config_class.model_type:
        return Tokenizers.from_pretrained(folder)
    logging.set_verbosity_error()  # it says that the image processor is the slow one
    try:
        processor = AutoProcessor.from_pretrained(folder)
        return Tokenizers(processor.tokenizer, processor.qformer_tokenizer, processor.image_processor)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"host: {folder!s} has no InstructBLIP processor (tokenizer, {QFORMER_TOKENIZER}, image processor): {error}"
        ) from error
    finally:
        logging.set_verbosity_warning()


def _config(folder):
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"host: cannot load {str(folder)!r}: {error}") from error
    if "instructblip" not in config.model_type or config.model_type == "instructblipvideo":
        raise UserError(f"host: {str(folder)!r} is a {config.model_type!r} model; wanted InstructBLIP")
    return config
