"""Whole layers and training steps of both methods: the frozen model, petx, the literal eager form, PEFT's LoRA.

The models have the published sizes and random weights. Layers take their input with a gradient, as inside a model; a
step is forward, a loss, backward and AdamW's update.
"""

import functools
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from petx.bench import peers
from petx.bench.case import (
    DTYPES,
    FROZEN,
    PETX,
    Arm,
    BenchCase,
    Built,
    Device,
    Form,
    Problem,
    Tensors,
    Unavailable,
    problem,
)
from petx.bench.ops import expert_mixture, gated_adapter
from petx.nn import GatedAdapter, ValueAdapter

FormOf = Callable[[Any], Form]  # of a model, what a step runs

RANK, HEADS, DROPOUT = 96, 4, 0.1
PETAL_RANK, EXPERTS = 64, 6


def cases(dtype: torch.dtype) -> list[BenchCase]:
    """Layers and steps in float32 and bfloat16."""
    if dtype not in DTYPES:
        return []
    return [
        vlpet_layer("bart", dtype, quick=dtype == torch.float32),
        vlpet_layer("t5", dtype),
        petal_layer(dtype, quick=dtype == torch.float32),
        vlpet_step(dtype, quick=dtype == torch.float32),
        petal_step(dtype, quick=dtype == torch.float32),
    ]


def vlpet_layer(
    kind: str, dtype: torch.dtype, *, batch: int = 20, length: int = 56, quick: bool = False, **sizes: int
) -> BenchCase:
    """One encoder layer with a site after its attention and one after its feed-forward part."""

    def forward_of(model: Any) -> Form:
        encoder = _inner(model).get_encoder()
        return lambda t: (encoder(inputs_embeds=t["hidden"]).last_hidden_state,)

    make = {"bart": _bart, "t5": _t5}[kind]
    width = sizes.get("d_model", 768)
    return _case(
        "encoder_layer",
        f"{kind}-vlpet",
        dtype,
        dict(batch=batch, length=length, d=width, r=RANK),
        {"hidden": (batch, length, width)},
        lambda: make(1, **sizes),
        _vlpet_arms(forward_of, r".*encoder.*\.(out_proj|fc2|SelfAttention\.o|wo)"),
        quick=quick,
    )


def vlpet_step(
    dtype: torch.dtype,
    *,
    batch: int = 4,
    length: int = 56,
    target: int = 16,
    layers: int = 6,
    quick: bool = False,
    **sizes: int,
) -> BenchCase:
    """BART-base: encoder sites and decoder values, a target of ``target`` tokens."""

    def forward_of(model: Any) -> Form:
        vocabulary, draw = model.config.vocab_size, torch.Generator().manual_seed(0)
        device = next(model.parameters()).device
        labels = torch.randint(vocabulary, (batch, target), generator=draw).to(device)
        return lambda t: (model(inputs_embeds=t["hidden"], labels=labels).loss,)

    width = sizes.get("d_model", 768)
    return _case(
        "training_step",
        "bart-vlpet",
        dtype,
        dict(batch=batch, length=length, d=width, layers=layers),
        {"hidden": (batch, length, width)},
        lambda: _bart(layers, **sizes),
        _vlpet_arms(forward_of, r".*(encoder.*\.(out_proj|fc2)|decoder.*encoder_attn\.v_proj)", step=True),
        quick=quick,
        whole=True,
    )


def petal_layer(dtype: torch.dtype, *, batch: int = 4, text: int = 32, quick: bool = False, **sizes: int) -> BenchCase:
    """One Q-Former layer with cross-attention: 32 queries, ``text`` tokens, 257 image tokens per sample."""
    return _petal("qformer_layer", "petal", dtype, batch, text, 1, quick, False, sizes)


def petal_step(
    dtype: torch.dtype, *, batch: int = 2, text: int = 32, layers: int = 12, quick: bool = False, **sizes: int
) -> BenchCase:
    """The whole Q-Former, cross-attention in every second layer."""
    return _petal("training_step", "qformer-petal", dtype, batch, text, layers, quick, True, sizes)


def _petal(
    operation: str,
    name: str,
    dtype: torch.dtype,
    batch: int,
    text: int,
    layers: int,
    quick: bool,
    whole: bool,
    sizes: dict[str, int],
) -> BenchCase:
    def forward_of(model: Any) -> Form:
        host = _inner(model)
        qformer, queries = host.qformer, host.query_tokens.shape[1]
        device = next(model.parameters()).device
        ids = torch.randint(100, (batch, text), generator=torch.Generator().manual_seed(0)).to(device)
        mask = torch.ones(batch, queries + text, dtype=torch.long, device=device)

        def forward(t: Tensors) -> tuple[torch.Tensor, ...]:
            out = qformer(
                input_ids=ids, attention_mask=mask, query_embeds=t["queries"], encoder_hidden_states=t["image"]
            ).last_hidden_state[:, :queries]
            return (out.float().square().mean() if whole else out,)

        return forward

    width, image = sizes.get("hidden_size", 768), sizes.get("encoder_hidden_size", 1408)
    return _case(
        operation,
        name,
        dtype,
        dict(batch=batch, text=text, d=width, R=PETAL_RANK, K=EXPERTS, layers=layers),
        {"queries": (batch, 32, width), "image": (batch, 257, image)},
        lambda: _instructblip(layers, **sizes),
        _petal_arms(forward_of, whole),
        quick=quick,
        whole=whole,
        gradients=("queries",),
    )


def _case(
    operation: str,
    name: str,
    dtype: torch.dtype,
    sizes: dict[str, int],
    activations: dict[str, tuple[int, ...]],
    host: Callable[[], nn.Module],
    arms: list[Arm],
    *,
    quick: bool,
    whole: bool = False,
    gradients: tuple[str, ...] = ("hidden",),
) -> BenchCase:
    def make(case: BenchCase, device: Device) -> Problem:
        made = problem(case, device, {}, activations, gradients=gradients)
        return Problem({}, {"host": (host, device, dtype)}, made.fresh)

    return BenchCase(operation, name, dtype, sizes, make, tuple(arms), quick=quick, whole=whole)


def _vlpet_arms(forward_of: FormOf, lora_sites: str, step: bool = False) -> list[Arm]:
    def tuned(model: Any) -> Any:
        from petx.tuners import VLPetConfig

        return _with_peft(model, VLPetConfig(granularity="large", rank=RANK, heads=HEADS, decoder_rank=RANK))

    return [
        _arm(PETX, tuned, forward_of, step),
        _arm(peers.LITERAL, lambda model: literal_vlpet(tuned(model)), forward_of, step),
        _arm(peers.LORA, lambda model: _lora(model, lora_sites, RANK), forward_of, step),
        _arm(FROZEN, lambda model: model, forward_of, step),
    ]


def _petal_arms(forward_of: FormOf, step: bool) -> list[Arm]:
    def tuned(model: Any) -> Any:
        try:
            from petx.tuners import PetalConfig
        except ImportError as error:
            raise Unavailable("this petx has no PETAL tuner") from error
        return _with_peft(model, PetalConfig(rank=PETAL_RANK, experts=EXPERTS))

    sites = r"qformer\..*\.(query|key|value)"
    return [
        _arm(PETX, tuned, forward_of, step),
        _arm(peers.LITERAL, literal_petal, forward_of, step),
        _arm(peers.LORA, lambda model: _lora(model, sites, PETAL_RANK), forward_of, step),
        _arm(FROZEN, lambda model: model, forward_of, step),
    ]


def _arm(name: str, adapt: Callable[[Any], Any], forward_of: FormOf, step: bool) -> Arm:
    """The arm of a model that ``adapt`` makes of the frozen host, in training mode."""

    def build(case: BenchCase, problem: Problem) -> Built:
        host, device, dtype = problem.frozen["host"]
        torch.manual_seed(0)
        model = adapt(host().requires_grad_(False)).to(device=device, dtype=dtype).train()
        leaves = [p for p in model.parameters() if p.requires_grad]
        run = forward_of(model)
        if not step:
            return run, leaves
        optimizer = torch.optim.AdamW(leaves, lr=1e-5) if leaves else None

        def whole(activations: Tensors) -> tuple[torch.Tensor, ...]:
            (loss,) = run(activations)
            loss.backward()
            for tensor in activations.values():
                tensor.grad = None
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()
            return (loss.detach(),)

        return whole, leaves

    return Arm(name, build)


def literal_vlpet(model: nn.Module) -> nn.Module:
    """A tuned ``model`` whose adapters run operation by operation as released, with the same parameters."""
    for module in model.modules():
        if isinstance(module, GatedAdapter):
            literal = _value_adapter if isinstance(module, ValueAdapter) else _site
            module.__dict__["forward"] = functools.partial(literal, module)
    return model


def _site(
    module: Any, h: torch.Tensor, x: torch.Tensor | None = None, padding_mask: torch.Tensor | None = None
) -> torch.Tensor:
    tensors: dict[str, Any] = dict(h=h, x=x)
    for name in ("down", "up", "gate_down", "gate"):
        layer = getattr(module, name)
        tensors |= {f"{name}_weight": layer.weight, f"{name}_bias": layer.bias}
    (y,) = gated_adapter.literal(tensors, heads=module.heads, dropout=0.0, tail="none", granularity="large")
    return y if module.scale == 1.0 else module.scale * y


def _value_adapter(
    module: Any, e: torch.Tensor, v: torch.Tensor, padding_mask: torch.Tensor | None = None
) -> torch.Tensor:
    return v + module.up(gated_adapter.gelu_new(module.down(e)))


class LiteralProjection(nn.Module):
    """A frozen projection with PETAL's update as the released code runs it: x Uᵀ, dropout and C x₃ p at every call."""

    def __init__(
        self,
        base: nn.Module,
        u: Callable[[], torch.Tensor],
        v: Callable[[], torch.Tensor],
        core: Callable[[], torch.Tensor],
    ) -> None:
        super().__init__()
        self.base, self.factors = base, (u, v, core)  # shared, registered once by the model
        self.mode = nn.Parameter(torch.randn(core().shape[0]) * 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u, v, core = (factor() for factor in self.factors)
        return self.base(x) + F.linear(F.dropout(F.linear(x, u), DROPOUT, self.training) @ (core @ self.mode), v)


def literal_petal(model: Any) -> Any:
    """``model`` with PETAL written literally into its Q-Former: projections, experts, scale and shift."""
    qformer, config = model.qformer, model.config.qformer_config
    factors = nn.ParameterDict()
    for kind, width in (("text", config.hidden_size), ("image", config.encoder_hidden_size)):
        factors[f"u_{kind}"] = nn.Parameter(torch.randn(PETAL_RANK, width) * 0.02)
        factors[f"v_{kind}"] = nn.Parameter(torch.randn(config.hidden_size, PETAL_RANK) * 0.02)
        factors[f"core_{kind}"] = nn.Parameter(torch.randn((PETAL_RANK,) * 3) / PETAL_RANK)
    qformer.literal_factors = factors
    for module in list(qformer.modules()):
        for name in ("query", "key", "value"):
            base = getattr(module, name, None)
            if isinstance(base, nn.Linear):
                kind = "text" if base.in_features == config.hidden_size else "image"
                shared = [lambda n=f"{part}_{kind}": factors[n] for part in ("u", "v", "core")]
                setattr(module, name, LiteralProjection(base, *shared))
    d, stacked = config.hidden_size, EXPERTS * PETAL_RANK
    mixture = nn.ParameterDict(
        {
            "down_weight": torch.randn(stacked, d) * 0.02,
            "down_bias": torch.zeros(stacked),
            "up_weight": torch.randn(d, stacked) * 0.02,
            "up_bias": torch.zeros(EXPERTS, d),
        }
    )
    qformer.literal_experts = mixture
    qformer.embeddings.register_forward_hook(
        lambda module, inputs, x: expert_mixture.literal(
            dict(mixture) | {"x": x}, experts=EXPERTS, gate="uniform", alpha=0.6, beta=0.4
        )[0]
    )
    for layer in qformer.encoder.layer:
        _scale_and_shift(layer, d)
    return model


def _scale_and_shift(layer: Any, width: int) -> None:
    """Add 0.1 (A a + b) to the layer's output, A its self-attention's."""
    layer.literal_scale, layer.literal_shift = (nn.Parameter(torch.randn(width) * 0.0002) for _ in range(2))
    seen = []
    layer.attention.register_forward_hook(
        lambda module, inputs, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )

    def add(module: nn.Module, inputs: tuple, out: Any) -> Any:
        residual = 0.1 * (seen.pop() * layer.literal_scale + layer.literal_shift)
        return (out[0] + residual, *out[1:]) if isinstance(out, tuple) else out + residual

    layer.register_forward_hook(add)


def _inner(model: Any) -> Any:
    return model.base_model.model if hasattr(model, "peft_config") else model


def _with_peft(model: Any, config: Any) -> Any:
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT uses a name that transformers is renaming
        return get_peft_model(model, config, autocast_adapter_dtype=False)


def _lora(model: Any, sites: str, rank: int) -> Any:
    from peft import LoraConfig

    return _with_peft(
        model,
        LoraConfig(r=rank, lora_alpha=rank, lora_dropout=DROPOUT, target_modules=sites, init_lora_weights=False),
    )


def _transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise Unavailable("transformers is not installed") from error
    return transformers


def _bart(layers: int, **sizes: int) -> Any:
    t = _transformers()
    return t.BartForConditionalGeneration(
        t.BartConfig(**_BART | dict(encoder_layers=layers, decoder_layers=layers) | sizes)
    )


def _t5(layers: int, **sizes: int) -> Any:
    t = _transformers()
    return t.T5ForConditionalGeneration(t.T5Config(**_T5 | dict(num_layers=layers) | sizes))


_T5 = dict(d_model=768, d_kv=64, d_ff=3072, num_heads=12, decoder_start_token_id=0)
_BART = dict(d_model=768, encoder_ffn_dim=3072, decoder_ffn_dim=3072)
_BART |= dict(encoder_attention_heads=12, decoder_attention_heads=12)


def _instructblip(layers: int, **sizes: int) -> Any:
    """InstructBLIP whose Q-Former has the published size; vision tower and language model are not run, and tiny."""
    t = _transformers()
    qformer = dict(hidden_size=768, num_attention_heads=12, intermediate_size=3072, encoder_hidden_size=1408)
    qformer |= dict(num_hidden_layers=layers, cross_attention_frequency=2) | sizes
    vision = dict(hidden_size=qformer["encoder_hidden_size"], intermediate_size=8, num_hidden_layers=0)
    text = t.T5Config(vocab_size=100, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    model = t.InstructBlipForConditionalGeneration(
        t.InstructBlipConfig(
            vision_config=t.InstructBlipVisionConfig(**vision, image_size=28, patch_size=14),
            qformer_config=t.InstructBlipQFormerConfig(**qformer),
            text_config=text,
            num_query_tokens=32,
        )
    )
    nn.init.normal_(model.query_tokens, std=0.02)  # transformers leaves them at zero
    return model
