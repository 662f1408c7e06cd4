"""A tuned model and its parts compile into one graph for all text lengths, and export with a dynamic one."""

import pytest
import torch

from petx import nn
from tests.fixtures.tiny_hosts import VOCABULARY, make_host, tuned
from tests.fixtures.tiny_vlms import IMAGE_TOKEN, IMAGE_WIDTH, QUERIES, WIDTH, make_vlm, petal

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
LENGTHS = (9, 5, 12)
D = 16
LAYERS = {  # name -> (layer, number of inputs)
    "GatedAdapter, large": (lambda: nn.GatedAdapter(D, 8, 2, granularity="large", residual=True, norm="layer"), 2),
    "GatedAdapter, small": (lambda: nn.GatedAdapter(D, 8, 2, granularity="small"), 2),
    "ExpertMixture, token": (lambda: nn.ExpertMixture(D, 3, 4, gate="token"), 1),
    "ExpertMixture, sample": (lambda: nn.ExpertMixture(D, 3, 4, gate="sample"), 1),
    "ModeLinear": (lambda: nn.ModeLinear(D, D, rank=4), 1),
}
HOSTS = ("bart", "t5", "instructblip-t5")
# A compiler takes half a minute for a model, so the whole suite has one of each method.
WHOLE = ["bart", pytest.param("t5", marks=pytest.mark.nightly), "instructblip-t5"]


# One layer of each kind: a compiler's time goes by layers. A Q-Former's second has no cross attention.
SHORT = {
    "bart": dict(encoder_layers=1, decoder_layers=1, dropout=0.0),
    "t5": dict(num_layers=1, dropout_rate=0.0),
    "instructblip-t5": dict(qformer=dict(num_hidden_layers=2)),
}


def frozen_and_tuned(kind):
    if kind in ("bart", "t5"):
        return make_host(kind, **SHORT[kind]), tuned(make_host(kind, **SHORT[kind])).base_model.model
    host, model = make_vlm(kind, **SHORT[kind]), petal(make_vlm(kind, **SHORT[kind]))
    return host.qformer, model.base_model.model.qformer


def arguments(kind, length):
    """The arguments of a text of ``length`` tokens."""
    draw = torch.Generator().manual_seed(length)

    def words(count):
        return torch.randint(3, min(VOCABULARY, IMAGE_TOKEN), (2, count), generator=draw)

    if kind in ("bart", "t5"):
        ids = words(length)
        return dict(input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=words(length - 2))
    image = torch.randn(2, 5, IMAGE_WIDTH, generator=draw)
    seen = dict(query_embeds=torch.randn(2, QUERIES, WIDTH, generator=draw), encoder_hidden_states=image)
    mask = torch.ones(2, length + QUERIES, dtype=torch.long)
    return dict(input_ids=words(length), attention_mask=mask, **seen)


def call(part, kind, length):
    """The result that everything adapted leads to, for a text of ``length`` tokens."""
    out = part(**arguments(kind, length))
    return out.logits if kind in ("bart", "t5") else out.last_hidden_state


class Graphs:
    """A backend, ``inner``, that counts the graphs that run; torch may compile one twice until it takes it."""

    def __init__(self, inner="aot_eager"):
        self.ran, self.made, self.inner = set(), 0, torch._dynamo.lookup_backend(inner)

    @property
    def count(self):
        return len(self.ran)

    def __call__(self, module, inputs):
        self.made += 1
        number, run = self.made, self.inner(module, inputs)

        def graph(*args):
            self.ran.add(number)
            return run(*args)

        return graph


def graphs(part, kind, inner="aot_eager", **how):
    """How many graphs all lengths take, with results and gradients as without the compiler."""
    torch._dynamo.reset()
    backend = Graphs(inner)
    fast = torch.compile(part, backend=backend, **how)
    leaves = [p for p in part.parameters() if p.requires_grad]
    for length in LENGTHS:
        results = []
        for run in (part, fast):
            out = call(run, kind, length)
            results.append([out.detach()])
            if leaves:
                grads = torch.autograd.grad(out.square().mean(), leaves, allow_unused=True)
                results[-1] += [grad for grad in grads if grad is not None]
        for found, wanted in zip(*results, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    return backend.count


@pytest.mark.slow
@pytest.mark.parametrize("kind", WHOLE)
def test_one_graph_for_all_lengths(kind):
    _, model = frozen_and_tuned(kind)
    assert graphs(model, kind, dynamic=True, fullgraph=True) == 1


@pytest.mark.nightly
@pytest.mark.parametrize("kind", HOSTS)
def test_automatic_dynamic_shapes_take_as_few_graphs_as_the_frozen_host(kind):
    frozen, model = frozen_and_tuned(kind)
    assert graphs(model, kind) <= graphs(frozen, kind)


def inputs(count, batch, length):
    draw = torch.Generator().manual_seed(length)
    return [torch.randn(batch, length, D, generator=draw) for _ in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_one_graph_for_all_lengths(name):
    make, count = LAYERS[name]
    layer = make()
    for how, most in ((dict(dynamic=True), 1), (dict(), 2)):
        torch._dynamo.reset()
        backend = Graphs()
        fast = torch.compile(layer, backend=backend, fullgraph=True, **how)
        for length in LENGTHS:
            given = inputs(count, 2, length)
            torch.testing.assert_close(fast(*given), layer(*given))
        assert backend.count <= most


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_exported_with_a_dynamic_length(name):
    make, count = LAYERS[name]
    layer = make().eval().requires_grad_(False)
    size = {1: torch.export.Dim("length", min=2, max=512)}
    program = torch.export.export(layer, tuple(inputs(count, 2, 5)), dynamic_shapes=(size,) * count)
    for length in LENGTHS:
        given = inputs(count, 2, length)
        torch.testing.assert_close(program.module()(*given), layer(*given))


@pytest.mark.slow
@pytest.mark.parametrize("kind", HOSTS)
def test_a_tuned_model_is_exported_with_a_dynamic_length(kind):
    _, model = frozen_and_tuned(kind)
    for module in model.eval().modules():
        if hasattr(module, "config"):
            module.config.use_cache = False
    dynamic, texts = {1: torch.export.Dim.AUTO}, ("input_ids", "attention_mask", "decoder_input_ids")
    given = arguments(kind, 9)
    shapes = {name: dynamic if name in texts else None for name in given}
    program = torch.export.export(model, (), given, dynamic_shapes=shapes, strict=False)
    for length in LENGTHS:
        torch.testing.assert_close(call(program.module(), kind, length), call(model, kind, length))


@pytest.mark.nightly
@pytest.mark.parametrize("kind", HOSTS)
def test_inductor_takes_one_graph_for_all_lengths(kind):
    _, model = frozen_and_tuned(kind)
    assert graphs(model, kind, "inductor", dynamic=True, fullgraph=True) == 1
