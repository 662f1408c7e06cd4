"""Time and memory of arms that take turns, on inputs that no cache still holds."""

import contextlib
import gc
import importlib
import math
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from petx.bench.case import DIRECTIONS, PETX, BenchCase, Built, Device, Form, Problem, Tensors, Unavailable
from petx.bench.peers import COMPILED, GRAPHS

os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler, which counts memory, would report its every start

# Activations rotate through at least this many bytes: past the last-level cache of common CPUs, and a GPU's L2.
ROTATED_BYTES = {"cpu": 96 << 20, "cuda": 256 << 20}
MOST_SETS = 32
LEAST_ROUNDS = 8


Say = Callable[[str], None]
Set = tuple[Tensors, list[torch.Tensor]]  # activations and outgoing gradients
Rounds = dict[str, dict[str, list[tuple[float, float]]]]  # arm -> direction -> (seconds, those over petx's)


class Clock:
    """Wall time with the device's queue empty at both ends."""

    def __init__(self, device: Device) -> None:
        self.waits = torch.device(device).type == "cuda"

    def now(self) -> float:
        if self.waits:
            torch.cuda.synchronize()
        return time.perf_counter()


def measure(
    case: BenchCase,
    device: Device,
    *,
    seconds: float,
    rounds: Rounds | None = None,
    least_rounds: int = LEAST_ROUNDS,
    most_rounds: int = 40,
    least_patience: float = 30,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Every arm's times and memory: name -> ``{direction: summary, "peak_bytes", "kept_bytes"}`` or
    ``{"unavailable": reason}``. The summary of a peer has the one of its time over petx's in ``"ratio"``.

    ``rounds``, a dict that is empty at first, gathers what several visits of one case measured: each adds its rounds,
    and returns the summary of all. Memory, which is the same at every visit, is the first's to measure.

    Arms take turns in rounds, whose order shifts from round to round, until ``seconds`` are over and ``least_rounds``
    are done; if those would take four times as long, fewer, but three. Raises Unavailable if petx itself
    cannot run.
    """
    if any(arm.name in (COMPILED, GRAPHS) for arm in case.arms):
        importlib.import_module("torch._inductor.compile_fx")  # given up half-way, an import stays broken

    torch.manual_seed(0)
    problem = case.make(case, device)
    arms: dict[str, Built] = {}
    results: dict[str, dict[str, Any]] = {}
    sets: list[Set] = []
    for arm in case.arms:
        try:
            with contextlib.nullcontext() if arm.name == PETX else patience(max(20 * seconds, least_patience)):
                forward, leaves = arm.build(case, problem)
                sets = sets or _sets(case, problem, forward, device)
                _step(case, forward, leaves, *sets[1], Clock(device))  # threads, compilation
                memory = {} if rounds else _memory(case, forward, leaves, *sets[0], device)
            arms[arm.name] = (forward, leaves)
            results[arm.name] = dict(memory)
        except KeyboardInterrupt:
            raise
        except Exception as error:  # a peer may fail in whatever way: it is listed with the reason
            why = reason(error)
            if arm.name == PETX:
                raise Unavailable(why) from error
            say(f"{arm.name}: {why}")
            results[arm.name] = {"unavailable": why}
            _release(device)
    times = _take_turns(case, arms, sets, device, seconds, least_rounds, most_rounds)
    rounds = {} if rounds is None else rounds
    for name, by_direction in times.items():
        for direction, values in by_direction.items():  # over petx's of the same round: both slow down with the machine
            pairs = [(a, a / b) for a, b in zip(values, times[PETX][direction], strict=True)]
            rounds.setdefault(name, {}).setdefault(direction, []).extend(pairs)
    for name, gathered in rounds.items():
        measured = {d: summary([seconds for seconds, _ in pairs]) for d, pairs in gathered.items()}
        if name != PETX:
            for d, pairs in gathered.items():
                measured[d]["ratio"] = summary([ratio for _, ratio in pairs])
        results[name] = measured | {key: v for key, v in results[name].items() if key != "unavailable"}
    return {arm.name: results[arm.name] for arm in case.arms}


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Raise Unavailable in the main thread if the block is not done in ``seconds``; elsewhere wait for it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(*_: Any) -> None:
        raise Unavailable(f"its first step was not done within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def summary(values: list[float]) -> dict[str, Any]:
    """Median and spread: the middle 80 % of the rounds, all of them if there are fewer than ten."""
    low, high = min(values), max(values)
    if len(values) >= 10:
        low, *_, high = statistics.quantiles(values, n=10, method="inclusive")
    return {"median": statistics.median(values), "low": low, "high": high, "rounds": len(values)}


def _take_turns(
    case: BenchCase,
    arms: dict[str, Built],
    sets: list[Set],
    device: Device,
    seconds: float,
    least_rounds: int,
    most_rounds: int,
) -> dict[str, dict[str, list[float]]]:
    directions = ("step",) if case.whole else DIRECTIONS
    times: dict[str, dict[str, list[float]]] = {name: {d: [] for d in directions} for name in arms}
    clock, names, turn = Clock(device), list(arms), 0
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        for round_ in range(most_rounds):
            spent = time.perf_counter() - start
            if round_ >= min(3, least_rounds) and spent > (1 if round_ >= least_rounds else 4) * seconds:
                break
            shift = round_ % len(names)
            for name in names[shift:] + names[:shift]:
                activations, gradients = sets[turn % len(sets)]
                turn += 1
                for direction, value in _step(case, *arms[name], activations, gradients, clock).items():
                    times[name][direction].append(value)
    finally:
        gc.enable()
    return times


def _step(
    case: BenchCase,
    forward: Form,
    leaves: Sequence[torch.Tensor],
    activations: Tensors,
    gradients: list[torch.Tensor],
    clock: Clock,
) -> dict[str, float]:
    """Seconds of every direction of one step."""
    start = clock.now()
    outputs = forward(activations)
    middle = clock.now()
    if case.whole:
        return {"step": middle - start}
    leaves = [*leaves, *(t for t in activations.values() if t.requires_grad)]
    torch.autograd.grad(outputs, leaves, gradients, allow_unused=True)
    end = clock.now()
    times = {"fwd": middle - start, "bwd": end - middle, "fwd+bwd": end - start}
    if clock.waits:  # once more without waiting between the two, as a training step runs
        del outputs
        start = clock.now()
        torch.autograd.grad(forward(activations), leaves, gradients, allow_unused=True)
        times["fwd+bwd"] = clock.now() - start
    return times


def _sets(case: BenchCase, problem: Problem, forward: Form, device: Device) -> list[Set]:
    """Pairs of activations and outgoing gradients, enough to rotate past the caches."""
    first = problem.fresh()
    shapes = [] if case.whole else [(t.shape, t.dtype) for t in forward(first)]

    def gradients() -> list[torch.Tensor]:
        return [torch.randn(shape, device=device, dtype=dtype) for shape, dtype in shapes]

    sets = [(first, gradients())]
    size = sum(t.numel() * t.element_size() for t in [*first.values(), *sets[0][1]])
    count = math.ceil(ROTATED_BYTES[torch.device(device).type] / max(size, 1))
    sets += [(problem.fresh(), gradients()) for _ in range(min(max(count, 2), MOST_SETS) - 1)]
    return sets


def _memory(
    case: BenchCase,
    forward: Form,
    leaves: Sequence[torch.Tensor],
    activations: Tensors,
    gradients: list[torch.Tensor],
    device: Device,
) -> dict[str, int]:
    """Bytes at the peak of a step, and bytes that its forward leaves behind (outputs and what the backward keeps)."""
    leaves = [*leaves, *(t for t in activations.values() if t.requires_grad)]

    def backward(outputs: tuple[torch.Tensor, ...]) -> None:
        if not case.whole:
            torch.autograd.grad(outputs, leaves, gradients, allow_unused=True)

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        outputs = forward(activations)
        kept = torch.cuda.memory_allocated() - before
        backward(outputs)
        torch.cuda.synchronize()
        return {"peak_bytes": torch.cuda.max_memory_allocated() - before, "kept_bytes": kept}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        outputs = forward(activations)
    kept, peak = _running_sum(profile)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        backward(outputs)
    return {"peak_bytes": max(peak, kept + _running_sum(profile)[1]), "kept_bytes": kept}


def _running_sum(profile: Any) -> tuple[int, int]:
    """(what is left, the highest) of the sum of allocations and releases that torch's allocator reported."""
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return total, peak


def reason(error: BaseException) -> str:
    """Why something could not run, in one line."""
    if isinstance(error, Unavailable):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "not enough GPU memory"
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{type(error).__name__}: {text[:160]}"


def _release(device: Device) -> None:
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
