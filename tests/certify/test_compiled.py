"""The choice inside torch.compile: a constant of the graph, which breaks nothing, compiles nothing again and stays."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from petx.certify import certificate, choice
from petx.certify.certificate import Certificate, Finding
from tests.certify.calls import CALLS
from tests.certify.fake import H100

RANK = 8
by_operation = pytest.mark.parametrize("stem", CALLS)


class Compiled:
    """Calls of an operation on a fake GPU through torch.compile: one graph or an error; ``graphs`` are kept."""

    def __init__(self, stem):
        self.stem, self.graphs = stem, []
        case = CALLS[stem](RANK)
        self.function = torch.compile(lambda tensors: case.call(tensors, {}), backend=self.keep, fullgraph=True)

    def keep(self, graph, _):
        self.graphs.append(graph)
        return graph.forward

    def __call__(self, samples, length=5, dtype=torch.float32):
        shapes = CALLS[self.stem](RANK, (samples, length)).shapes
        with FakeTensorMode(), torch.no_grad():
            return self.function({n: torch.empty(s, device="cuda", dtype=dtype) for n, s in shapes.items()})

    def operators(self):
        """Of each graph, whether it has petx's operator."""
        return [f"petx.{self.stem}_fwd" in str([node.target for node in graph.graph.nodes]) for graph in self.graphs]


def put(stem, petx, eager, rank=RANK):
    """A certificate by which the operation takes so long."""
    times = [[15, 24, rank, petx, eager]]
    choice.forget()
    choice._of[0] = choice.of_certificate(Certificate({}, {stem: {"float32": Finding("right", times=times)}}), H100)


@pytest.fixture
def compiled(cards):
    torch._dynamo.reset()
    yield Compiled
    torch._dynamo.reset()


@by_operation
def test_the_choice_is_a_constant_of_one_graph(stem, compiled):
    put(stem, 1.0, 2.0)
    call = compiled(stem)
    call(3)
    assert call.operators() == [True]
    assert choice._answers == {
        (stem, 0, torch.float32, None, None, None): True
    }  # over all shapes, for a resume to know


@by_operation
def test_sizes_compile_nothing_anew(stem, compiled):
    """Eager calls ask for each power of two of rows: a graph does not. The second is torch's own, of symbolic sizes."""
    put(stem, 1.0, 2.0)
    call = compiled(stem)
    for samples in (3, 5, 7, 40, 300, 5000):
        call(samples)
    assert call.operators() == [True, True]


@by_operation
def test_a_graph_keeps_its_choice(stem, compiled):
    """Another certificate, found in the middle of a run, is for the graphs to come."""
    put(stem, 1.0, 2.0)
    call = compiled(stem)
    call(3)
    put(stem, 2.0, 1.0)
    call(3)
    assert call.operators() == [True]


def test_the_first_use_may_be_inside(compiled, cards):
    """Then the card is certified while the call is traced: once, and for the next process, too."""
    state = torch.get_rng_state()
    for stem in ("mode_update", "gated_adapter"):
        call = compiled(stem)
        call(3)
        call(3)
        assert call.operators() == [True]
    assert cards.started == 1 and len(list(certificate.folder().glob("*.json"))) == 1
    assert torch.equal(torch.get_rng_state(), state)


# The references of the two others index a tensor, which torch without CUDA refuses on a fake GPU.
@pytest.mark.parametrize("stem", ["expert_mixture", "gated_adapter", "mode_cores"])
def test_a_slower_kernel_is_in_no_graph(stem, compiled):
    put(stem, 2.0, 1.0)
    call = compiled(stem)
    call(3)
    assert call.operators() == [False]
