"""Tiny encoder-decoders with random weights (d = 32, 2 + 2 layers) and batches for them, shared by several tests."""

import warnings

import torch
from peft import get_peft_model
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from petx.models import VLBartConfig, VLBartForConditionalGeneration, VLT5Config, VLT5ForConditionalGeneration
from petx.tuners import VLPetConfig
from petx.tuners.vlpet.layer import VLPetLayer

VOCABULARY, WIDTH, VISUAL_WIDTH = 60, 32, 20
BART = dict(
    vocab_size=VOCABULARY,
    d_model=WIDTH,
    encoder_layers=2,
    decoder_layers=2,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    max_position_embeddings=64,
    init_std=0.2,
)
_T5 = dict(vocab_size=VOCABULARY, d_model=WIDTH, d_kv=16, d_ff=48, num_layers=2, num_heads=2, decoder_start_token_id=0)
_VISUAL = dict(visual_width=VISUAL_WIDTH)
HOSTS = {
    "bart": lambda **more: BartForConditionalGeneration(BartConfig(**BART | more)),
    "t5": lambda **more: T5ForConditionalGeneration(T5Config(**_T5 | more)),
    "vl_bart": lambda **more: VLBartForConditionalGeneration(VLBartConfig(**BART | _VISUAL | more)),
    "vl_t5": lambda **more: VLT5ForConditionalGeneration(VLT5Config(**_T5 | _VISUAL | more)),
}


def make_host(kind, seed=0, **more):
    """A host in evaluation mode, with the norms moved away from 1 and 0 so that leaving one out shows."""
    torch.manual_seed(seed)
    model = HOSTS[kind](**more)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def tuned(host, seed=1, adapter_name="default", spread=0.3, **options):
    """``host`` (a name or a model) with an adapter whose weights are random everywhere, in evaluation mode."""
    host = make_host(host) if isinstance(host, str) else host
    torch.manual_seed(seed)
    config = VLPetConfig(**dict(rank=8, heads=4, decoder_rank=4) | options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT uses a name that transformers is renaming
        model = get_peft_model(host, config, adapter_name=adapter_name)
    randomise(model, adapter_name, spread)
    return model.eval()


@torch.no_grad()
def randomise(model, adapter_name="default", spread=0.3):
    for name, parameter in model.named_parameters():
        if f".{adapter_name}." in name:
            parameter.add_(spread * torch.randn_like(parameter))


def batch(kind="bart", seed=2, padded=True):
    """Keyword arguments of a forward pass: 2 samples, 7 text tokens, 5 visual tokens where the host takes them."""
    draw = torch.Generator().manual_seed(seed)
    inputs = {
        "input_ids": torch.randint(3, VOCABULARY, (2, 7), generator=draw),
        "labels": torch.randint(3, VOCABULARY, (2, 4), generator=draw),
    }
    if padded:
        inputs["attention_mask"] = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    if kind.startswith("vl_"):
        inputs["visual_features"] = torch.randn(2, 5, VISUAL_WIDTH, generator=draw)
    return inputs


def logits(model, kind):
    with torch.no_grad():
        return model(**batch(kind)).logits


def layers(model):
    """The VL-PET layers in ``model``."""
    return [module for module in model.modules() if isinstance(module, VLPetLayer)]
