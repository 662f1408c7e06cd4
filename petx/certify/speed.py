"""Stage 2: how long petx and eager torch take on a card, over a few shapes of each operation."""

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

import torch

from petx.bench import peers
from petx.bench.case import PETX
from petx.certify.cases import MODULES

LEAST_ROUNDS, MOST_ROUNDS = 3, 10
SECONDS = 0.25  # of the rounds of one shape, once the least are done
MEMORY = 0.4  # of what is free, that a shape may take


def times(
    stem: str, dtype: torch.dtype, device: str, say: Callable[[str], None] = lambda shape: None
) -> list[list[float]]:
    """``[rows, width, rank, seconds by petx, by eager torch]`` of a forward and backward of each shape that fits into
    the free memory; ``say`` is told each before."""
    found = []
    for shape in MODULES[stem].SHAPES:
        case = MODULES[stem].timed(*shape, dtype)
        if _bytes(case) > MEMORY * _free(device):
            continue
        say(f"{stem}, {shape[0]} x {shape[1]}, rank {shape[2]}")
        by_arm = _measured(case, device)
        found.append([*map(float, shape), by_arm[PETX], by_arm[peers.BEST]])
    return found


def _bytes(case: Any) -> float:
    """About what a step of a case holds: eager torch keeps some ten tensors of its largest size."""
    return 10 * sum(traffic for _, traffic in case.work.values())


def _free(device: str) -> float:
    return torch.cuda.mem_get_info()[0] if torch.device(device).type == "cuda" else math.inf


def _measured(case: Any, device: str) -> dict[str, float]:
    """Arm -> its shortest step; the two take turns, so that both slow down with the machine."""
    problem = case.make(case, device)
    activations, arms = problem.fresh(), {}
    for arm in case.arms:
        if arm.name in (PETX, peers.BEST):
            forward, leaves = arm.build(case, problem)
            arms[arm.name] = (forward, leaves + [t for t in activations.values() if t.requires_grad])
    gradients = [torch.randn_like(result) for result in arms[PETX][0](activations)]
    shortest = dict.fromkeys(arms, math.inf)
    end = time.perf_counter() + SECONDS
    for done in range(MOST_ROUNDS + 1):
        if done > LEAST_ROUNDS and time.perf_counter() > end:
            break
        for name, (forward, leaves) in arms.items():
            with _clock(device) as seconds:
                torch.autograd.grad(forward(activations), leaves, gradients, allow_unused=True)
            if done:  # the first loads code
                shortest[name] = min(shortest[name], seconds[0])
    return shortest


@contextlib.contextmanager
def _clock(device: str) -> Any:
    """Seconds that the card took for what is inside, launches included."""
    seconds: list[float] = []
    if torch.device(device).type != "cuda":
        start = time.perf_counter()
        yield seconds
        seconds.append(time.perf_counter() - start)
        return
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    yield seconds
    end.record()
    end.synchronize()
    seconds.append(begin.elapsed_time(end) / 1e3)
