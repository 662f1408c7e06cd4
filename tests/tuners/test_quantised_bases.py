"""Both methods on bases that a quantising library packed: torchao and bitsandbytes, as far as they run on a CPU."""

import importlib
import warnings

import pytest
import torch
from peft import get_peft_model
from torch import nn

from petx.errors import UserError
from petx.tuners import PetalConfig, VLPetConfig, adapted, load_adapter, parameter_counts
from tests.fixtures import tiny_tuned, todays_vlms

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning")]
FAMILY = "llava"
CONFIGS = {
    "petal": lambda **more: PetalConfig(**dict(rank=4, experts=2, expert_rank=4) | more),
    "vlpet": lambda **more: VLPetConfig(**dict(preset="decoder", rank=4, heads=2) | more),
}


def _library(name):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError:
        pytest.skip(f"{name} is not installed")


def _linears(model):
    """Path -> linear of the language model and the projector; their sizes are what the packings ask for."""
    found = {path: module for path, module in model.named_modules() if type(module) is nn.Linear}
    return {path: linear for path, linear in found.items() if "language_model" in path or "projector" in path}


def _model():
    config = todays_vlms.tiny_config(FAMILY)
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.head_dim, text.num_key_value_heads = 64, 64, 16, 4
    vision.hidden_size, vision.num_attention_heads = 64, 4
    torch.manual_seed(0)
    return todays_vlms.build(config).eval().requires_grad_(False)


def _torchao(model, config):
    quantization = _library("torchao.quantization")
    chosen = _linears(model)
    quantization.quantize_(model, config(quantization), filter_fn=lambda module, path: path in chosen)
    return model


def _int8(model):
    return _torchao(model, lambda library: library.Int8WeightOnlyConfig())


def _int4(model):
    """In torchao's format for CPUs, which is a prototype."""
    formats = _library("torchao.prototype.quantization.int4")
    return _torchao(model.bfloat16(), lambda library: formats.PrototypeInt4WeightOnlyConfig(group_size=32))


def _bitsandbytes(model, make):
    library = _library("bitsandbytes")
    for path, linear in _linears(model).items():
        parent, _, name = path.rpartition(".")
        packed = make(library.nn, linear.in_features, linear.out_features, linear.bias is not None)
        packed.load_state_dict(linear.state_dict())
        setattr(model.get_submodule(parent), name, packed.to("cpu"))
    return model.requires_grad_(False)


def _8bit(model):
    def make(kinds, rows, columns, bias):
        return kinds.Linear8bitLt(rows, columns, bias=bias, has_fp16_weights=False)

    return _bitsandbytes(model, make)


def _4bit(model):
    def make(kinds, rows, columns, bias):
        return kinds.Linear4bit(rows, columns, bias=bias, compute_dtype=torch.float32, quant_type="nf4")

    return _bitsandbytes(model, make)


BASES = {"torchao int8": _int8, "torchao int4": _int4, "bitsandbytes 8-bit": _8bit, "bitsandbytes 4-bit": _4bit}


@pytest.fixture(params=BASES)
def base(request):
    """``base()``: a frozen tiny model, its linears packed, always the same."""

    def made():
        try:
            return BASES[request.param](_model()).eval()
        except (ImportError, NotImplementedError, RuntimeError, AssertionError) as error:
            pytest.skip(f"{request.param} does not run here: {' '.join(str(error).split())[:200]}")

    return made


def logits(model):
    with torch.no_grad():
        return model(**todays_vlms.batch(FAMILY)).logits


def tuned(base, method, **more):
    torch.manual_seed(1)
    model = get_peft_model(base(), CONFIGS[method](**more))
    tiny_tuned.randomise(model, "default", 0.2, within=f".{method}_")
    return model.eval()


@pytest.mark.parametrize("method", CONFIGS)
def test_attach_save_load(base, method, tmp_path):
    model = tuned(base, method)
    wanted = logits(model)
    with model.disable_adapter():
        frozen = logits(model)
    assert wanted.isfinite().all() and not torch.allclose(wanted, frozen, atol=1e-2)
    model.save_pretrained(tmp_path)
    loaded = load_adapter(base(), tmp_path, is_trainable=True).eval()
    assert torch.equal(logits(loaded), wanted)
    prompt = {name: value for name, value in todays_vlms.batch(FAMILY).items() if name != "labels"}
    assert loaded.generate(**prompt, max_new_tokens=2).shape[1] > prompt["input_ids"].shape[1]


@pytest.mark.parametrize("method", CONFIGS)
def test_training_reaches_every_tensor_also_after_an_evaluation(base, method, request):
    model = tuned(base, method)
    for _ in range(2):
        loss = model.train()(**todays_vlms.batch(FAMILY)).loss
        if "int4" in request.node.callspec.id:  # torchao's product for CPUs is for inference
            with pytest.raises(RuntimeError, match="derivative .* is not implemented"):
                loss.backward()
            return
        loss.backward()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert trained and all(p.grad is not None and p.grad.any() for p in trained.values())
        assert all(p.grad is None for name, p in model.named_parameters() if name not in trained)
        model.zero_grad()
        logits(model.eval())


def test_a_base_repacked_for_inference_is_refused_by_name():
    """bitsandbytes does that where the CPU has AVX512-BF16; elsewhere there is nothing to repack."""
    model = _4bit(_model()).eval()
    logits(model)
    linear = model.model.language_model.layers[0].self_attn.q_proj
    if not getattr(linear.weight.quant_state, "packing_format_for_cpu", False):
        pytest.skip("this CPU is not one for which bitsandbytes repacks weights")
    with pytest.raises(UserError, match=r"bitsandbytes has repacked model\..* for inference on this CPU"):
        get_peft_model(model, CONFIGS["petal"]())
    assert not [name for name, _ in model.named_modules() if "petal" in name]


@pytest.mark.parametrize("method", CONFIGS)
def test_places_and_counts_are_those_of_the_plain_model(base, method):
    packed, plain = tuned(base, method), get_peft_model(_model(), CONFIGS[method]())
    assert [(place.path, place.kind) for place in adapted(packed)] == [(p.path, p.kind) for p in adapted(plain)]
    assert parameter_counts(packed)["trainable"] == parameter_counts(plain)["trainable"]


@pytest.mark.parametrize("method", CONFIGS)
def test_merging_is_refused_by_the_layers_name(base, method):
    options = dict(experts=0, query_transform=False) if method == "petal" else dict(granularity="none")
    model = tuned(base, method, **options)
    if method == "vlpet":  # an adapter that would merge into a plain base
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".up." in name:
                    parameter.zero_()
    wanted = logits(model)
    path = r"model\.language_model\.layers\.0\.self_attn\.(q|o)_proj"
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(UserError, match=rf"cannot be merged: at {path}, the base is quantised"):
            merge()
    assert torch.equal(logits(model), wanted)


def test_the_explicit_form_is_refused_by_the_layers_name(base):
    with pytest.raises(UserError, match=r"writes the weight of model\.language_model.*q_proj out, but the base is qu"):
        get_peft_model(base(), PetalConfig(rank=4, dropout=0, experts=0, form="explicit"))
