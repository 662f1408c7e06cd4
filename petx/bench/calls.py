"""What the call of a layer costs beyond its operator: without gradients, on inputs so small that little else counts."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import petx.nn
from petx import ops
from petx.bench.case import Device
from petx.bench.timing import Clock

Call = Callable[[], Any]

CALLS = 50  # of one measurement


def overheads(device: Device, seconds: float = 0.6) -> dict[str, dict[str, float]]:
    """Layer -> ``{"layer": seconds per call, "operator": of what it calls, directly}``; torch's Linear beside them.

    Empty without compiled operators for ``device``.
    """
    if not ops.has_kernel("gated_adapter", torch.device(device).type):
        return {}
    x, modes = torch.randn(2, 3, 16, device=device), torch.randn(5, 4, device=device)
    linear = torch.nn.Linear(16, 16, device=device)
    site = petx.nn.GatedAdapter(16, 8, granularity="large", device=device).eval()
    value = petx.nn.ValueAdapter(16, 16, 8, device=device).eval()
    mixture, cores = petx.nn.ExpertMixture(16, 3, 4, device=device), petx.nn.ModeCores(4, device=device)
    adapted = petx.nn.ModeLinear(16, 16, 4, device=device)
    layers = {
        "GatedAdapter": lambda: site(x, x),
        "ValueAdapter": lambda: value(x, x),
        "ExpertMixture": lambda: mixture(x),
        "ModeCores": lambda: cores(modes),
        "ModeLinear": lambda: adapted(x),  # the frozen linear and two operators
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a parallel region costs more than such a call
    try:
        with torch.no_grad():
            weight, bias = linear.weight, linear.bias
            frozen = lambda: F.linear(x, weight, bias)  # noqa: E731
            calls = {
                name: (call, _operators(call, frozen if call is layers["ModeLinear"] else None))
                for name, call in layers.items()
            }
            calls["torch's Linear"] = (lambda: linear(x), frozen)
            return {name: _best(layer, operator, Clock(device), seconds) for name, (layer, operator) in calls.items()}
    finally:
        torch.set_num_threads(threads)


def _operators(call: Call, frozen: Call | None) -> Call:
    """The operators of petx that a call reaches, with its arguments, and what else it calls."""

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
            if function.namespace == "petx":
                reached.append((function.overloadpacket, args, kwargs or {}))
            return function(*args, **kwargs or {})

    reached: list[tuple[Any, tuple, dict[str, Any]]] = []
    with Recorder():
        call()

    def run() -> None:
        if frozen:
            frozen()
        for operator, args, kwargs in reached:
            operator(*args, **kwargs)

    return run


def _best(layer: Call, operator: Call, clock: Clock, seconds: float) -> dict[str, float]:
    """The shortest of many measurements of each, which take turns."""
    shortest, end = {"layer": math.inf, "operator": math.inf}, clock.now() + seconds
    while shortest["operator"] == math.inf or clock.now() < end:
        for name, call in (("layer", layer), ("operator", operator)):
            start = clock.now()
            for _ in range(CALLS):
                call()
            shortest[name] = min(shortest[name], (clock.now() - start) / CALLS)
    return shortest
