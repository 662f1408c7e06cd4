"""Every case of `petx bench` under pytest-benchmark: `pytest benchmarks --benchmark-enable -k bart`.

pytest-benchmark's own table shows petx's forward plus backward; the ratios to the peers come from rounds in which the
arms take turns, and stand in a table after it and in each benchmark's ``extra_info``.
"""

import pytest
import torch

from benchmarks.conftest import RATIOS
from petx.bench import table, timing
from petx.bench.case import PETX, Unavailable

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("case", table.cases(DEVICE), ids=lambda case: str(case).replace(" ", "-"))
def test_case(benchmark, case):
    if not benchmark.enabled:
        pytest.skip("timed with --benchmark-enable")
    try:
        results = timing.measure(case, DEVICE, seconds=1.0)
    except Unavailable as error:
        pytest.skip(str(error))
    direction = "step" if case.whole else "fwd+bwd"
    medians = {name: arm[direction]["median"] for name, arm in results.items() if direction in arm}
    absent = {name: arm["unavailable"] for name, arm in results.items() if "unavailable" in arm}
    RATIOS.append((str(case), medians))
    ratios = {f"ratio to {name}": seconds / medians[PETX] for name, seconds in medians.items() if name != PETX}
    benchmark.extra_info.update(ratios | {"peak_bytes": results[PETX]["peak_bytes"], "absent": absent})
    benchmark.pedantic(_step(case), rounds=3, warmup_rounds=1)


def _step(case):
    problem = case.make(case, DEVICE)
    forward, leaves = case.arms[0].build(case, problem)
    activations = problem.fresh()
    if case.whole:
        return lambda: forward(activations)
    leaves = leaves + [t for t in activations.values() if t.requires_grad]
    gradients = [torch.ones_like(t) for t in forward(activations)]
    clock = timing.Clock(DEVICE)

    def step():
        torch.autograd.grad(forward(activations), leaves, gradients, allow_unused=True)
        clock.now()

    return step
