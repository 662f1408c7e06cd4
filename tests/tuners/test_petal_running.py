"""Models with PETAL adapters at work: checkpointing, dropout, generating, low precision, compiling, loading."""

import contextlib
import copy

import pytest
import torch
from peft import get_peft_model
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import offload_wrapper
from torch.utils._python_dispatch import TorchDispatchMode

import petx.functional
from petx.tuners import PetalConfig
from petx.tuners.petal import running
from tests.fixtures.tiny_vlms import (
    IMAGE_TOKEN,
    IMAGE_WIDTH,
    VLMS,
    make_vlm,
    petal,
    petal_layers,
    vlm_batch,
    vlm_logits,
)
from tests.tuners.test_petal_tuner import qformer_inputs

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
QFORMERS = ("instructblip-t5", "blip2-t5")


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same_gradients(found, wanted, **tolerances):
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(
            found[name], wanted[name], msg=lambda text, name=name: f"{name}: {text}", **tolerances
        )


def without_host_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return model.train()


def two_passes(model, kind):
    """Two passes before one backward: what a layer is handed must belong to the pass that is recomputed."""
    torch.manual_seed(0)
    losses = [model(**vlm_batch(kind)).loss, 2 * model(**vlm_batch(kind, seed=7)).loss]
    sum(losses).backward()
    return gradients(model)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("kind", VLMS)
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_no_gradient(kind, use_reentrant, dropout):
    options = {} if kind == "llava" else dict(context="per_sample", cross_query_transform=True)
    model = without_host_dropout(petal(kind, dropout=dropout, **options))
    checkpointed = copy.deepcopy(model)
    checkpointed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert_same_gradients(two_passes(checkpointed, kind), two_passes(model, kind), rtol=1e-4, atol=1e-5)


def counted(monkeypatch, owner, name, size):
    """List that gets ``size(*args)`` of every call of ``owner.name``."""
    calls, real = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: calls.append(size(*args)) or real(*args, **kwargs))
    return calls


def test_cores_and_image_are_made_once_for_all_layers_checkpointed_too(monkeypatch):
    """And not again where the backward recomputes layers. Under a reentrant checkpoint every group makes its own."""
    cores = counted(monkeypatch, petx.functional, "mode_cores", lambda core, modes, threshold: len(modes))
    images = counted(monkeypatch, running, "project", lambda x, u: x.shape[-1])
    for how in (None, dict(use_reentrant=False), dict(use_reentrant=True)):
        model = without_host_dropout(petal("instructblip-t5", dropout=0.3))  # which asks for cores, too
        if how:
            model.gradient_checkpointing_enable(how)
        own = bool(how) and how["use_reentrant"]
        wanted = [1, 1, 2, 2, 3, 3, 3] if own else [4, 11]
        for _ in range(2):
            cores.clear(), images.clear()
            loss = model(**vlm_batch("instructblip-t5")).loss
            assert sorted(cores) == wanted and images == ([] if own else [IMAGE_WIDTH])
            loss.backward()
            assert sorted(cores) == sorted(wanted * (2 if own else 1)) and images == ([] if own else [IMAGE_WIDTH])


def test_a_step_between_checkpointed_passes_is_seen():
    model = without_host_dropout(petal("instructblip-t5", dropout=0.0))
    plain = copy.deepcopy(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    found = []
    for one in (model, plain):
        torch.manual_seed(0)
        one(**vlm_batch("instructblip-t5")).loss.backward()
        with torch.no_grad():
            for parameter in one.parameters():
                if parameter.requires_grad:
                    parameter.sub_(parameter.grad, alpha=0.01)
        one.zero_grad()
        found.append(two_passes(one, "instructblip-t5"))
    assert_same_gradients(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("first", [False, True])
def test_checkpointed_passes_on_one_image_of_which_one_runs_under_autocast(first):
    """The image's projection that a layer gets again is in the dtype of the pass that is recomputed."""
    model = without_host_dropout(petal("instructblip-t5", dropout=0.0))
    plain = copy.deepcopy(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    inputs, found = qformer_inputs("instructblip-t5", model.base_model.model), []
    for one in (model, plain):
        losses = []
        for enabled in (first, not first):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                out = one.base_model.model.qformer(**inputs).last_hidden_state
            losses.append(out.float().square().mean())
        sum(losses).backward()
        found.append(gradients(one))
    assert_same_gradients(*found, rtol=1e-4, atol=1e-6)


class Narrowed(TorchDispatchMode):
    """Keeps the shapes of the float32 matrices and core tensors that were cast to bfloat16."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        pairs = []
        if func._schema.name == "aten::_to_copy":
            pairs = [(args[0], out)]
        elif func._schema.name == "aten::_foreach_copy_":
            pairs = zip(args[1], args[0], strict=True)
        for before, after in pairs:
            if (before.dtype, after.dtype) == (torch.float32, torch.bfloat16) and after.dim() > 1:
                self.shapes.append(tuple(after.shape))
        return out


@pytest.mark.parametrize("checkpointed", [False, True])
def test_factors_and_cores_are_cast_once_a_pass(checkpointed):
    """Beside a host in bfloat16: u, v and cores of both kinds, and the experts; however many layers there are."""
    for layers in (3, 5):
        host = make_vlm("instructblip-t5", qformer=dict(num_hidden_layers=layers)).bfloat16()
        model = without_host_dropout(petal(host))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        inputs = qformer_inputs("instructblip-t5", model.base_model.model)
        inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"].bfloat16()
        with Narrowed() as forward:
            out = model.base_model.model.qformer(**inputs).last_hidden_state
        assert len(forward.shapes) == 9, forward.shapes
        out = out.float().square().mean()
        with Narrowed() as backward:
            out.backward()
        assert checkpointed or len(backward.shapes) <= 1, backward.shapes  # the gradient of `out` itself
        grads = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
        assert grads and all(grad.dtype == torch.float32 for grad in grads)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_whole_tower_under_a_checkpoint(use_reentrant):
    model = without_host_dropout(petal("instructblip-t5", dropout=0.0))
    host = model.base_model.model
    inputs = qformer_inputs("instructblip-t5", host)

    def run(image):
        return host.qformer(**inputs | {"encoder_hidden_states": image}).last_hidden_state

    def backward(out):
        out.square().sum().backward()
        return gradients(model)

    image = inputs["encoder_hidden_states"].requires_grad_()
    wanted = backward(run(image))
    found = backward(torch.utils.checkpoint.checkpoint(run, image, use_reentrant=use_reentrant))
    assert_same_gradients(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("around", ["checkpoint", "save_on_cpu", "save_on_cpu, layer by layer"])
def test_checkpointed_layers_whose_inputs_are_packed_by_hooks_around_them(around):
    """The layer that is recomputed then gets another tensor than the image that it was given before."""
    plain = without_host_dropout(petal("instructblip-t5", dropout=0.3))
    inputs = qformer_inputs("instructblip-t5", plain.base_model.model)
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})

    def gradients_of(model, around):
        qformer, image = model.base_model.model.qformer, inputs["encoder_hidden_states"].clone().requires_grad_()
        parameters = dict(model.named_parameters())
        if "layer by layer" in around:
            qformer.encoder.layer = torch.nn.ModuleList(map(offload_wrapper, qformer.encoder.layer))

        def run(image):
            return qformer(**inputs | {"encoder_hidden_states": image}).last_hidden_state

        torch.manual_seed(0)
        if around == "checkpoint":
            out = torch.utils.checkpoint.checkpoint(run, image, use_reentrant=False)
        else:
            with torch.autograd.graph.save_on_cpu() if around == "save_on_cpu" else contextlib.nullcontext():
                out = run(image)
        out.square().sum().backward()
        return {name: p.grad for name, p in parameters.items() if p.grad is not None} | {"image": image.grad}

    assert_same_gradients(gradients_of(checkpointed, around), gradients_of(plain, ""), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", QFORMERS)
def test_projections_called_apart_give_what_the_group_gives(kind):
    """The hand-over depends on the tensor, its version and autograd's state; each change is noticed."""
    model = petal(kind)
    attention = model.base_model.model.qformer.encoder.layer[1].attention.attention
    names = ("query", "key", "value")
    x = torch.randn(2, 4, 32)

    def fresh(name, x):
        attention.query.group.forget()
        return getattr(attention, name)(x)

    with torch.no_grad():
        wanted = {name: fresh(name, x) for name in names}
        for first in names:
            for name in (first, *names):
                assert torch.equal(getattr(attention, name)(x), wanted[name])
        attention.query.group.forget()
        attention.key(x)
        x.mul_(2)
        assert torch.equal(attention.value(x), fresh("value", x.clone()))
        attention.key(x)
        assert torch.equal(attention.value(x.clone()), fresh("value", x))
        attention.query.group.forget()
        attention.key(x)
    assert attention.value(x).requires_grad
    with torch.inference_mode():
        y = x * 1.0
        assert torch.equal(attention.key(y), fresh("key", x)) and torch.equal(attention.value(y), fresh("value", x))


def test_a_step_between_passes_is_seen():
    model = petal("instructblip-t5").train()
    batch = vlm_batch("instructblip-t5")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = vlm_logits(model.eval(), "instructblip-t5")
    model(**batch).loss.backward()
    optimizer.step()
    after = vlm_logits(model, "instructblip-t5")
    assert not torch.allclose(before, after, atol=1e-4)
    assert torch.equal(vlm_logits(copy.deepcopy(model), "instructblip-t5"), after)


def test_dropout_masks_differ_between_projections_unless_shared():
    for shared in (False, True):
        model = petal("instructblip-t5", dropout=0.5, shared_mask=shared, init_output="uniform").train()
        attention = model.base_model.model.qformer.encoder.layer[1].attention.attention
        layers = [attention.query, attention.key, attention.value]
        with torch.no_grad():
            for layer in layers:
                layer.petal_mode["default"].copy_(layers[0].petal_mode["default"])
        x = torch.randn(5, 32)
        with torch.no_grad():
            q, k, v = ((layer(x) - layer.base_layer(x)) for layer in layers)
        assert torch.allclose(q, k, atol=1e-5) is shared and torch.allclose(k, v, atol=1e-5) is shared
        assert not torch.equal(attention.query(x), attention.query(x))


@pytest.mark.parametrize("kind", VLMS)
def test_generation_does_not_depend_on_the_cache(kind):
    model = petal(kind)
    inputs = {name: value for name, value in vlm_batch(kind).items() if name != "labels"}
    options = dict(max_new_tokens=5, min_new_tokens=5, do_sample=False, suppress_tokens=[IMAGE_TOKEN])
    cached = model.generate(**inputs, **options)
    assert torch.equal(model.generate(**inputs, **options, use_cache=False), cached)
    beams = model.generate(**inputs, **options, num_beams=3)
    assert torch.equal(model.generate(**inputs, **options, num_beams=3, use_cache=False), beams)


@pytest.mark.parametrize("kind", VLMS)
def test_autocast(kind):
    model = petal(kind, spread=0.1)
    wanted = vlm_logits(model, kind)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(**vlm_batch(kind))
    out.loss.float().backward()
    assert (out.logits - wanted).abs().max() < 0.1 * wanted.abs().max()
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in gradients(model).values())


@pytest.mark.parametrize("kind", ["instructblip-llama", "llava"])
def test_half_precision_host_with_adapters_in_float32(kind):
    model = petal(make_vlm(kind).bfloat16(), spread=0.1)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    batch = vlm_batch(kind)
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    out = model(**batch)
    out.loss.backward()
    assert all(grad.dtype == torch.float32 for grad in gradients(model).values())
    wanted = vlm_logits(petal(kind, spread=0.1), kind)
    assert (out.logits.float() - wanted).abs().max() < 0.15 * wanted.abs().max()


@pytest.mark.parametrize("kind", ["instructblip-llama", "llava"])
def test_half_precision_adapters_where_they_are_wanted(kind):
    host = make_vlm(kind).bfloat16()
    model = get_peft_model(host, PetalConfig(rank=4), autocast_adapter_dtype=False)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["instructblip-llama", "llava"])
def test_tower_compiles_into_one_graph(kind):
    options = {} if kind == "llava" else dict(context="per_sample", cross_query_transform=True, expert_scope="text")
    small = dict(num_hidden_layers=1) if kind == "llava" else dict(qformer=dict(num_hidden_layers=1))
    model = petal(make_vlm(kind, **small), **options)
    host = model.base_model.model
    if kind == "llava":

        def run(x):
            return host.model.language_model(inputs_embeds=x, use_cache=False).last_hidden_state

        width = 20
    else:
        inputs = qformer_inputs(kind, host)

        def run(x):
            return host.qformer(**inputs | {"encoder_hidden_states": x}).last_hidden_state

        width = IMAGE_WIDTH
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for seed in (1, 2):
        x = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(seed))
        found, wanted = compiled(x), run(x)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    found.square().sum().backward()
    found = gradients(model)
    wanted.square().sum().backward()
    assert_same_gradients(found, gradients(model), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", VLMS)
def test_models_without_memory_take_adapters(kind):
    with torch.device("meta"):
        model = get_peft_model(VLMS[kind](), PetalConfig())
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_adapter_keeps_its_start_on_a_loaded_host(tmp_path):
    """transformers initialises every linear of a model that it loads; the adapter comes after that."""
    make_vlm("instructblip-t5").save_pretrained(tmp_path)
    host = type(make_vlm("instructblip-t5")).from_pretrained(tmp_path)
    model = get_peft_model(host, PetalConfig(rank=64, experts=2))
    parts = model.base_model.petal_shared["default"]
    text, bound = parts.factors["text"], 3**0.5 / 64
    assert 0.9 * bound < text.cores.core.abs().max() <= bound and not text.v["32"].any()
    assert 0.5 * 32**-0.5 < text.u.std() < 32**-0.5
    modes = torch.stack([layer.petal_mode["default"] for layer in petal_layers(model)])
    assert 0.9 * (6 / 65) ** 0.5 < modes.abs().max() <= (6 / 65) ** 0.5 and modes.any(dim=1).all()
    scale = parts.query_transform["qformer"][0].scale
    assert 0.0001 < scale.std() < 0.0003 and 0.015 < parts.experts.down_weight.std() < 0.025
    assert not parts.experts.down_bias.any() and not parts.experts.up_bias.any()
