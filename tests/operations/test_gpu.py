"""What only a GPU can show: graphs, streams, no waiting for the device, tensors past 2^31 elements."""

import pytest
import torch

from petx import functional, nn
from tests.cases import few
from tests.checks import outputs, outputs_and_grads, relative, weights_of
from tests.conftest import HAS_GPU

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_GPU, reason="needs an NVIDIA GPU and a library built for it"),
]
by_few = pytest.mark.parametrize("case", few(), ids=str)


def step(case, tensors, extras, weights):
    """One forward and backward with everything given, so that it can be captured."""
    results = outputs(case.call(tensors, extras))
    return [*results, *torch.autograd.grad(results, list(tensors.values()), weights, allow_unused=True)]


def prepared(case, dtype=torch.bfloat16):
    tensors, extras = case.inputs(dtype, device="cuda"), case.extras("cuda")
    return case, tensors, extras, weights_of(outputs(case.call(tensors, extras)))


def assert_same_bits(left, right):
    for a, b in zip(left, right, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@by_few
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_two_runs_have_the_same_bits(case, dtype):
    call = prepared(case, dtype)
    assert_same_bits(step(*call), step(*call))


@by_few
def test_nothing_waits_for_the_device(case):
    call = prepared(case)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(*call)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@by_few
def test_graph_replays_with_new_inputs_and_seeds(case):
    call = prepared(case)
    _, tensors, extras, _ = call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(*call)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(*call)
    for seed in (1, 2):
        other = case.inputs(torch.bfloat16, seed=seed, device="cuda", requires_grad=False)
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(other[name])
            if "seed" in extras:
                extras["seed"].fill_(seed)
        graph.replay()
        assert_same_bits(captured, step(*call))


@by_few
def test_streams_do_not_mix(case):
    call = prepared(case)
    wanted = step(*call)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(4)]
    results = []
    for _ in range(5):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(step(*call))
    torch.cuda.synchronize()
    for result in results:
        assert_same_bits(result, wanted)


@by_few
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_inductor(case, mode):
    torch._dynamo.reset()
    extras = case.extras("cuda")
    compiled = torch.compile(lambda tensors: case.call(tensors, extras), fullgraph=True, mode=mode)
    eager = outputs_and_grads(case.run, case.inputs(torch.float32, device="cuda"))
    for _ in range(3):  # the third replays a graph
        got = outputs_and_grads(compiled, case.inputs(torch.float32, device="cuda"))
        for name, value in eager.items():
            torch.testing.assert_close(got[name], value)


@pytest.mark.parametrize("operation", ["gated_adapter", "mode_update", "expert_mixture"])
def test_past_two_to_the_31_elements(operation):
    """The last rows of a tensor of more than 2^31 values are what a short tensor of them gives."""
    d, rank = 1024, 16
    rows = 2**31 // d + 64
    if torch.cuda.mem_get_info()[0] < 10 * rows * d * 2:
        pytest.skip("needs about 45 GB of free device memory")
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(1, rows, d, generator=generator, device="cuda", dtype=torch.bfloat16)
    if operation == "gated_adapter":
        layer = nn.GatedAdapter(d, rank, 4, granularity="middleX", device="cuda", dtype=torch.bfloat16)
        call = lambda t: layer(t, t)  # noqa: E731
    elif operation == "mode_update":
        u, v = (torch.randn(s, generator=generator, device="cuda").bfloat16() / 8 for s in ((rank, d), (d, rank)))
        cores = torch.randn(1, rank, rank, generator=generator, device="cuda").bfloat16()
        call = lambda t: functional.mode_update(t, u, v, cores)[0]  # noqa: E731
    else:
        down, up = (torch.randn(s, generator=generator, device="cuda").bfloat16() / 8 for s in ((rank, d), (d, rank)))
        call = lambda t: functional.expert_mixture(t, down, None, up, None, experts=4)  # noqa: E731
    with torch.no_grad():
        whole, tail = call(x)[:, -64:], call(x[:, -64:].clone())
    assert relative(whole, tail.double()) < 1e-2
