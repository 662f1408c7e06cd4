"""Tiny vision-language models with random weights and batches for them, shared by the tests of PETAL."""

import warnings

import torch
from peft import get_peft_model
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    CLIPVisionConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    T5Config,
)

from petx.tuners import PetalConfig
from petx.tuners.petal.layer import PetalLayer

VOCABULARY, QUERIES, IMAGE_TOKEN, WIDTH, IMAGE_WIDTH = 50, 3, 49, 32, 24
_VISION = dict(hidden_size=IMAGE_WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
_VISION |= dict(image_size=16, patch_size=8)
_QFORMER = dict(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=4)
_QFORMER |= dict(intermediate_size=48, encoder_hidden_size=IMAGE_WIDTH, cross_attention_frequency=2)
_QFORMER |= dict(max_position_embeddings=32, initializer_range=0.2)


def _t5():
    return T5Config(
        vocab_size=VOCABULARY, d_model=20, d_kv=10, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0
    )


def _llama(**more):
    return LlamaConfig(
        **dict(vocab_size=VOCABULARY, hidden_size=20, intermediate_size=24, num_hidden_layers=2, initializer_range=0.2)
        | dict(num_attention_heads=2, pad_token_id=0)
        | more
    )


def _blip(model, config, vision, qformer, text, settings):
    return model(
        config(
            vision_config=vision(**_VISION),
            qformer_config=qformer(**_QFORMER | settings.pop("qformer", {})),
            text_config=text,
            num_query_tokens=QUERIES,
            image_token_index=IMAGE_TOKEN,
            **settings,
        )
    )


def _instructblip(text, settings):
    parts = (InstructBlipVisionConfig, InstructBlipQFormerConfig)
    return _blip(InstructBlipForConditionalGeneration, InstructBlipConfig, *parts, text, settings)


def _llava(settings):
    vision = CLIPVisionConfig(**_VISION)
    config = LlavaConfig(vision_config=vision, text_config=_llama(**settings), image_token_index=IMAGE_TOKEN)
    return LlavaForConditionalGeneration(config)


VLMS = {
    "instructblip-t5": lambda **more: _instructblip(_t5(), more),
    "instructblip-llama": lambda **more: _instructblip(_llama(), more),
    "blip2-t5": lambda **more: _blip(
        Blip2ForConditionalGeneration, Blip2Config, Blip2VisionConfig, Blip2QFormerConfig, _t5(), more
    ),
    "llava": lambda **more: _llava(more),
}


def make_vlm(kind, seed=0, **more):
    """A frozen model in evaluation mode with queries and norms that look trained.

    Frozen, because torch's matmul folds dimensions according to requires_grad, which shows in the last digit.
    """
    torch.manual_seed(seed)
    model = VLMS[kind](**more)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() or name == "query_tokens":
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def petal(host, seed=1, adapter_name="default", spread=0.3, **options):
    """``host`` (a name or a model) with an adapter whose weights are random everywhere, in evaluation mode."""
    host = make_vlm(host) if isinstance(host, str) else host
    torch.manual_seed(seed)
    config = PetalConfig(**dict(rank=4, experts=2, expert_rank=3) | options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT uses a name that transformers is renaming
        model = get_peft_model(host, config, adapter_name=adapter_name)
    randomise(model, adapter_name, spread)
    return model.eval()


@torch.no_grad()
def randomise(model, adapter_name="default", spread=0.3):
    for name, parameter in model.named_parameters():
        if ".petal_" in name and adapter_name in name.split("."):
            parameter.add_(spread * torch.randn_like(parameter))


def vlm_batch(kind, seed=2, rows=2):
    """Keyword arguments of a forward pass: 2 images and instructions, the second shorter."""
    draw = torch.Generator().manual_seed(seed)

    def tokens(length):
        return torch.randint(3, IMAGE_TOKEN, (rows, length), generator=draw)

    batch = {"pixel_values": torch.randn(rows, 3, 16, 16, generator=draw)}
    images = 4 if kind == "llava" else QUERIES
    batch["input_ids"] = torch.cat([torch.full((rows, images), IMAGE_TOKEN), tokens(5)], dim=1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if kind.startswith("instructblip"):
        batch["qformer_input_ids"] = tokens(6)
        batch["qformer_attention_mask"] = torch.ones(rows, 6, dtype=torch.long)
        batch["qformer_attention_mask"][1, 4:] = 0
    batch["labels"] = tokens(4) if kind.endswith("t5") else batch["input_ids"].clone()
    return batch


def vlm_logits(model, kind, **more):
    with torch.no_grad():
        return model(**vlm_batch(kind, **more)).logits


def petal_layers(model):
    return [module for module in model.modules() if isinstance(module, PetalLayer)]
