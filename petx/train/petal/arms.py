"""The models that a run compares: one InstructBLIP, its Q-Former tuned in different ways."""

import dataclasses

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from petx.losses import InformationBottleneck
from petx.train.petal.arguments import ABLATIONS
from petx.tuners import PetalConfig

ESTIMATORS = "information_bottleneck"  # attribute of the tuned model; trained with it, not saved with the adapter


def build(arm, model, settings):
    """``model``, a host loaded anew, made into ``arm``: its trainable parameters have ``requires_grad``."""
    model.requires_grad_(False)
    if arm in ("petal", "random-host", *ABLATIONS):
        return petal(model, dataclasses.replace(settings, **ABLATIONS.get(arm, {})))
    if arm == "lora":
        return get_peft_model(model, lora_config(equal_size(model, settings, lora_parameters), settings))
    if arm == "adapter":
        add_adapters(model, equal_size(model, settings, adapter_parameters))
    elif arm == "head":
        model.qformer.encoder.layer[-1].intermediate_query.requires_grad_(True)
    elif arm in ("full", "everything", "scratch"):
        for part in (model.qformer, model.language_projection):
            part.requires_grad_(True)
        model.query_tokens.requires_grad_(True)
        if arm != "full":
            model.language_model.requires_grad_(True)
        last = model.qformer.encoder.layer[-1]  # the text's way out of the last layer leads nowhere
        for part in (last.intermediate, last.output):
            part.requires_grad_(False)
    return model


def petal_config(settings):
    return PetalConfig(
        towers=["qformer"],
        rank=settings.rank,
        core=settings.core,
        threshold=settings.threshold,
        threshold_per_rank=settings.threshold_per_rank and settings.threshold != "none",
        dropout=settings.adapter_dropout,
        shared_mask=settings.shared_mask,
        experts=settings.experts,
        expert_rank=settings.expert_rank,
        expert_gate=settings.expert_gate,
        expert_top_k=settings.expert_top_k if settings.experts else None,
        expert_scope=settings.expert_scope,
        expert_alpha=settings.expert_alpha,
        expert_beta=settings.expert_beta,
        query_transform=settings.query_transform,
        context=settings.context,
    )


def petal(model, settings):
    """``model`` with PETAL, and with the information bottleneck's estimators where ``settings`` want them."""
    tuned = get_peft_model(model, petal_config(settings))
    if settings.ib != "off":
        tuned.add_module(ESTIMATORS, information_bottleneck(model.config, settings).to(model.device))
        if settings.ib == "variational":  # whose bound is that of what the language model reads
            model.language_projection.register_forward_pre_hook(
                lambda _, inputs: tuned.get_submodule(ESTIMATORS).sample(*inputs)
            )
    return tuned


def information_bottleneck(config, settings):
    """:class:`petx.losses.InformationBottleneck` for a host of configuration ``config``."""
    released = settings.ib == "authors" and not config.use_decoder_only_language_model
    return InformationBottleneck(
        config.qformer_config.hidden_size,
        config.vision_config.hidden_size,
        config.text_config.vocab_size,
        estimator=settings.ib,
        eta=settings.ib_eta,
        kappa=None if settings.ib_learnable else settings.ib_weight,
        learnable_kappa=settings.ib_learnable,
        sign=settings.ib_sign,
        ignored="as_zero" if released else "skip",  # where a prompt stands before the answer it is never counted
    )


def lora_config(rank, settings):
    """LoRA on query, key and value of every attention of the Q-Former, as the paper's baseline; its scale is 1."""
    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=settings.adapter_dropout,
        target_modules=r"qformer\.encoder\.layer\.\d+\.(attention|crossattention)\.attention\.(query|key|value)",
    )


def lora_parameters(model, rank):
    """Parameters of LoRA at ``rank``."""
    layers = [
        linear
        for layer in model.qformer.encoder.layer
        for attention in _attentions(layer)
        for linear in (attention.query, attention.key, attention.value)
    ]
    return sum(rank * (linear.in_features + linear.out_features) for linear in layers)


def adapter_parameters(model, rank):
    width = model.config.qformer_config.hidden_size
    return len(model.qformer.encoder.layer) * (2 * rank * width + rank + 3 * width)


def equal_size(model, settings, parameters):
    """The rank at which ``parameters(model, rank)`` comes nearest to what PETAL trains at ``settings``."""
    with torch.device("meta"):
        skeleton = type(model)(model.config)
    wanted = counts(petal(skeleton.requires_grad_(False), dataclasses.replace(settings, ib="off")))["trainable"]
    fixed = parameters(model, 0)
    return max(1, round((wanted - fixed) / (parameters(model, 1) - fixed)))


def counts(model):
    """Parameters ``trainable`` and ``total``; the information bottleneck's ``estimators`` are counted apart."""
    named = dict(model.named_parameters())
    estimators = {name for name in named if name.startswith(f"{ESTIMATORS}.")}
    return {
        "trainable": sum(p.numel() for name, p in named.items() if p.requires_grad and name not in estimators),
        "total": sum(p.numel() for name, p in named.items() if name not in estimators),
        "estimators": sum(named[name].numel() for name in estimators),
    }


class Adapter(nn.Module):
    """``x + 0.1 relu(norm(x) Dᵀ + d) Uᵀ + u``, the bottleneck of UniAdapter; U and u start at zero."""

    def __init__(self, width, rank):
        super().__init__()
        self.norm, self.down, self.up = nn.LayerNorm(width), nn.Linear(width, rank), nn.Linear(rank, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x):
        return x + 0.1 * self.up(torch.relu(self.down(self.norm(x))))


class AfterSelfAttention(nn.Module):
    """A self-attention block whose output, of all tokens, goes through ``adapter``."""

    def __init__(self, block, adapter):
        super().__init__()
        self.block, self.adapter = block, adapter

    def forward(self, *args, **kwargs):
        return self.adapter(self.block(*args, **kwargs))


class BeforeCrossAttention(nn.Module):
    """A cross-attention block whose input, the query tokens, goes through the layer's adapter once more."""

    def __init__(self, block, adapter):
        super().__init__()
        self.block = block
        self.__dict__["adapter"] = adapter  # registered at the self-attention, which shares it

    def forward(self, hidden_states, **kwargs):
        return self.block(self.adapter(hidden_states), **kwargs)


def add_adapters(model, rank):
    """The paper's adapter baseline: one bottleneck a layer, after self-attention and again before cross-attention."""
    for layer in model.qformer.encoder.layer:
        weight = layer.attention.output.dense.weight
        adapter = Adapter(weight.shape[0], rank).to(weight.device, torch.float32)
        layer.attention = AfterSelfAttention(layer.attention, adapter)
        if layer.has_cross_attention:
            layer.crossattention = BeforeCrossAttention(layer.crossattention, adapter)


def _attentions(layer):
    yield layer.attention.attention
    if layer.has_cross_attention:
        yield layer.crossattention.attention
