"""Speed of the VL-PET site: `pytest benchmarks --benchmark-enable` (see docs/benchmarks.md).

One case is BART-base's encoder site, d = 768, r = r_g = 96, 4 heads, at N = 2,800 tokens (a tenth of the published
batch of 500 x 56), forward plus backward, alone and with the host's dropout, residual and LayerNorm.
"""

import statistics
import time

import pytest
import torch

from benchmarks.conftest import RATIOS
from benchmarks.peers import site_eager, site_literal
from petx import functional
from tests.cases.gated_adapter import site

HEADS, DROPOUT = 4, 0.1
TAILS = {"none": {}, "bart": dict(dropout=DROPOUT, residual=True, norm="layer")}


def petx_site(t, *, heads, scale, dropout, tail):
    return functional.gated_adapter(**t, granularity="large", scale=scale, **TAILS[tail])


ARMS = {"literal eager": site_literal, "best eager": site_eager, "petx": petx_site}


def step(arm, tensors, weights, tail):
    out = arm(tensors, heads=HEADS, scale=1.0, dropout=DROPOUT, tail=tail)
    torch.autograd.grad(out, list(tensors.values()), weights)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [560, 2800])
def test_site_forward_backward(benchmark, tokens, dtype, tail):
    case = site("bench", batch=(tokens // 56, 56), d=768, r=96, r_g=96, granularity="large", **TAILS[tail])
    tensors = case.inputs(dtype)
    weights = torch.randn(case.shapes["h"], dtype=dtype)
    times = {name: [] for name in ARMS}
    for round_ in range(12):
        for name, arm in ARMS.items():
            start = time.perf_counter()
            step(arm, tensors, weights, tail)
            if round_ >= 2:  # the first rounds warm caches and threads
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    label = f"gated_adapter N={tokens} {str(dtype)[6:]} tail={tail}"
    RATIOS.append((label, medians))
    benchmark.extra_info.update({f"ratio to {name}": seconds / medians["petx"] for name, seconds in medians.items()})
    benchmark.pedantic(step, args=(petx_site, tensors, weights, tail), rounds=5, warmup_rounds=1)
