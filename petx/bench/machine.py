"""The machine: what it is, and its own rates, measured in the same run, to which the cases' are compared."""

import functools
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from petx import ops
from petx.bench.case import Device, dtype_name
from petx.bench.timing import Clock
from petx.version import __version__

COPY_BYTES = {"cpu": [256 << 20], "cuda": [16 << 20, 64 << 20, 256 << 20, 1 << 30]}
GEMM_SIZE = {"cpu": 1024, "cuda": 8192}
GEMM_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def facts(device: Device) -> dict[str, Any]:
    """Names and versions of all that a result depends on."""
    gpu = torch.device(device).type == "cuda"
    info = ops._C.build_info() if ops._C is not None else None
    return {
        "device": torch.cuda.get_device_name() if gpu else _processor(),
        "device_type": torch.device(device).type,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if gpu else None,
        "petx": __version__,
        "kernels": None if info is None else info["cuda_mode"] if gpu else info["cpu_variant"],
        "compiler": None if info is None else info["compiler"],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def constants(device: Device, seconds: float = 0.6) -> dict[str, Any]:
    """Copy bandwidth (bytes read and written per second) and GEMM rate by dtype; on a GPU also the cost of a launch."""
    kind = torch.device(device).type
    copies = {}
    for size in COPY_BYTES[kind]:
        try:
            source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
        except torch.OutOfMemoryError:
            break
        copies[str(size)] = 2 * size / best(functools.partial(target.copy_, source), device, seconds)
        del source, target
    measured: dict[str, Any] = {"copy_bytes_per_second": copies, "gemm_flops_per_second": {}}
    for dtype in GEMM_DTYPES:
        rate = _gemm(256, dtype, device, 0.0)
        if 2 * GEMM_SIZE[kind] ** 3 / rate < 0.5:  # a CPU without instructions for a dtype would take minutes
            rate = _gemm(GEMM_SIZE[kind], dtype, device, seconds)
        measured["gemm_flops_per_second"][dtype_name(dtype)] = rate
    if kind == "cuda":
        measured |= _launches()
    return measured


def better(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Of two measurements of :func:`constants` the higher rates and the lower costs."""
    merged = {}
    for name, value in one.items():
        if isinstance(value, dict):
            merged[name] = {key: max(rate, other[name].get(key, rate)) for key, rate in value.items()}
        else:
            merged[name] = min(value, other.get(name, value))
    return merged


def _gemm(n: int, dtype: torch.dtype, device: Device, seconds: float) -> float:
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    out = torch.empty(n, n, device=device, dtype=dtype)
    return 2 * n**3 / best(lambda: torch.mm(a, b, out=out), device, seconds)


def best(function: Callable[[], Any], device: Device, seconds: float, least: int = 5) -> float:
    """Median time of the faster half: what the machine does if nothing disturbs it."""
    clock = Clock(device)
    times: list[float] = []
    for _ in range(2):
        function()
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = clock.now()
        function()
        times.append(clock.now() - start)
    return statistics.median(sorted(times)[: max(len(times) // 2, 1)])


def _launches(count: int = 200) -> dict[str, float]:
    """Seconds a small kernel takes from Python, and within a CUDA graph."""
    x = torch.zeros(256, device="cuda")

    def many() -> None:
        for _ in range(count):
            x.add_(1.0)

    launch = best(many, "cuda", 0.3) / count
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        many()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        many()
    return {"launch_seconds": launch, "graph_gap_seconds": best(graph.replay, "cuda", 0.3) / count}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
