"""The frozen host: a small BART pretrained here, or a pretrained BART or T5 given its visual embedding."""

import torch
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging

from petx.errors import UserError
from petx.models import VLBartConfig, VLBartForConditionalGeneration, VLT5ForConditionalGeneration

_CLASSES = {kind: VLBartForConditionalGeneration for kind in ("bart", "vl_bart")}
_CLASSES |= {kind: VLT5ForConditionalGeneration for kind in ("t5", "vl_t5")}


def small_bart(settings, tokenizer):
    """A BART of a million parameters with random weights, over ``tokenizer``'s words."""
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
        **_dropouts(settings),
        visual_width=settings.feature_width,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.bos_token_id,
        forced_eos_token_id=None,
    )
    return VLBartForConditionalGeneration(config)


def load(folder):
    """The host saved in ``folder``, in evaluation mode."""
    return _host_class(AutoConfig.from_pretrained(folder).model_type, folder).from_pretrained(folder)


def pretrained_tokenizer(settings):
    """Tokenizer of ``settings.host`` with the tokens VL-PET adds, the last 100 of them for the visual embedding."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.host)
        kind = AutoConfig.from_pretrained(settings.host).model_type
    except (OSError, ValueError) as error:
        raise UserError(f"host: cannot load {settings.host!r}: {error}") from error
    _host_class(kind, settings.host)
    extra = [] if kind in ("t5", "vl_t5") else [f"<extra_id_{i}>" for i in reversed(range(100))]
    tokenizer.add_tokens(extra + [f"<vis_extra_id_{i}>" for i in reversed(range(100))])
    return tokenizer


def pretrained(settings, tokenizer):
    """``settings.host`` with a new visual embedding of ``settings.feature_width`` and the new tokens' rows."""
    host_class = _host_class(AutoConfig.from_pretrained(settings.host).model_type, settings.host)
    logging.set_verbosity_error()  # which would warn that visual_embedding is new
    is_bart = host_class is VLBartForConditionalGeneration
    dropouts = _dropouts(settings) if is_bart else dict(dropout_rate=settings.dropout)
    model = host_class.from_pretrained(settings.host, visual_width=settings.feature_width, **dropouts)
    logging.set_verbosity_warning()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model


def skeleton(model):
    """A model like ``model`` without memory for its parameters, to count on."""
    with torch.device("meta"):
        return type(model)(model.config)


def _host_class(kind, name):
    if kind not in _CLASSES:
        raise UserError(f"host: {name!r} is a {kind!r} model; wanted BART or T5")
    return _CLASSES[kind]


def _dropouts(settings):
    return dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), settings.dropout)
