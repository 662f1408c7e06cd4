"""The CUDA kernels, run on the CPU by tests/emulator, against the reference and against themselves."""

import math

import pytest
import torch

from petx import ops
from tests.cases import BART_TAIL, CASES, T5_TAIL, site
from tests.emulator import ORDERS, Emulator, build_kernels
from tests.emulator import gated_adapter as emulated
from tests.test_gated_adapter import BY_NAME, outputs_and_grads, relative

pytestmark = pytest.mark.skipif(ops._C is None, reason=f"needs the compiled library's operators: {ops._load_error}")

# Several tiles and several chunks of depth in every direction, whole and ragged: what tests/cases.py is too narrow for.
WIDE = [
    site("wide", batch=(2, 35), d=200, r=72, r_g=136, granularity="large", **BART_TAIL),
    site("wide-odd", batch=(1, 67), d=131, r=67, r_g=65, granularity="large", **BART_TAIL),
    site("wide-pair", batch=(2, 35), d=160, r=144, heads=2, granularity="middleX", **BART_TAIL),
    site("wide-small", batch=(2, 65), d=136, r=72, granularity="small", mask=True, **T5_TAIL),
    site("wide-value", batch=(2, 65), d=72, d_x=200, r=80, placement="parallel"),
    site("wide-unread-x", batch=(2, 40), d=72, d_x=136, r=16, r_g=8, granularity="large"),
]

# float64 takes float32's kernels with wider numbers, float16 bfloat16's: a few cases each.
FEW = "none large-bart middleX-bart middleY-sigmoid small-masked large-rms large-exact pair parallel-large-wide-x odd"
DTYPED = [(case, dtype) for dtype in (torch.float32, torch.bfloat16) for case in [*CASES, *WIDE]]
DTYPED += [(BY_NAME[name], dtype) for dtype in (torch.float64, torch.float16) for name in FEW.split()]


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    return Emulator(build_kernels(tmp_path_factory.mktemp("emulator") / "kernels.so"))


@pytest.fixture
def emulator(kernels):
    kernels.library.simt_reset_counters()
    with emulated.in_place_of_cpu_kernels(kernels):
        yield kernels
    assert kernels.counters().launches > 0


def weights_of(case, dtype):
    return torch.randn(case.shapes["h"], generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("case", "dtype"), DTYPED, ids=[f"{case.name}-{dtype}" for case, dtype in DTYPED])
def test_kernels_match_reference(case, dtype, emulator):
    """Error against float64 at most twice torch's own in the same dtype, or the dtype's own resolution; and the same
    bits in every order of warps, lanes and blocks."""
    tensors, weights = case.inputs(dtype), weights_of(case, dtype)
    exact_inputs = {name: t.detach().double().requires_grad_() for name, t in tensors.items()}
    exact = outputs_and_grads(case.expected, exact_inputs, weights)
    own = outputs_and_grads(case.expected, tensors, weights)
    results = []
    for order in ORDERS if math.prod(case.shapes["h"]) < 3000 else ("random-1", "descending"):
        emulator.order = order
        results.append(outputs_and_grads(case.run, tensors, weights))
    floor = 1e-13 if dtype == torch.float64 else 4 * torch.finfo(dtype).eps
    for name, value in results[0].items():
        if exact[name] is None:  # an argument that this case does not read
            assert value is None or not value.any(), name
            continue
        assert all(torch.equal(other[name], value) for other in results[1:]), f"{name} depends on the order"
        error, torch_error = relative(value, exact[name]), relative(own[name], exact[name])
        assert error <= max(2 * torch_error, floor), f"{name}: error {error:.2e}, torch's own {torch_error:.2e}"


@pytest.mark.parametrize("name", ["large-bart", "middleX", "middleY", "small-masked", "parallel-large", "pair"])
def test_gradients_of_every_subset(name, emulator):
    """Asking for one argument's gradient, or for all but one, changes none of the others."""
    case = BY_NAME[name]
    full = outputs_and_grads(case.run, case.inputs(torch.float32), weights_of(case, torch.float32))
    for chosen in case.shapes:
        for wanted in ({chosen}, set(case.shapes) - {chosen}):
            tensors = case.inputs(torch.float32, requires_grad=False)
            leaves = [tensors[n].requires_grad_() for n in tensors if n in wanted]
            grads = torch.autograd.grad((case.run(tensors) * weights_of(case, torch.float32)).sum(), leaves)
            for leaf_name, grad in zip([n for n in tensors if n in wanted], grads, strict=True):
                assert torch.equal(grad, full[leaf_name]), (chosen, leaf_name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bytes_and_products(dtype, emulator):
    """The forward's cost by formula: each value asked for and written as often as the tiling says, and no more."""
    n, d, r = 128, 128, 64  # two blocks of rows, two tiles of columns, one of the rank
    case = site("cost", batch=(1, n), d=d, r=r, bias=False, x=False)
    tensors = case.inputs(dtype, requires_grad=False)
    case.run(tensors)
    counters, size, blocks = emulator.counters(), tensors["h"].element_size(), n // 64
    # Down: h and the weight, then z for its gelu; up, for each tile of columns: gelu(z) and the weight's rows, then h.
    read = n * d + blocks * r * d + n * r + 2 * n * r + blocks * d * r + n * d
    assert counters.launches == 1
    assert counters.global_read == read * size
    assert counters.global_written == (2 * n * r + n * d) * size
    per_tile = 8 * 4  # warps of 16 rows by 32 columns, in products of 16 by 8
    chunks = blocks * (d // 64 + d // 64 * r // 64)
    assert counters.matrix_products == (0 if dtype == torch.float32 else chunks * 4 * per_tile)
    assert counters.bank_conflicts == 0
