"""Where the time of a Q-Former's training step with PETAL goes, beside the literal eager form and the frozen model.

    python -m benchmarks.qformer_step --threads 2 --rounds 6 --processes 12

takes turns, so that a machine that slows down slows all, and prints medians in milliseconds: whole steps, petx's step
without a part of PETAL, the optimizer, and the step's operators and added products alone, at its shapes. Where the
system happens to put a model's weights makes its steps up to a fifth faster or slower for as long as the process lives,
and the first model built had the worse places: so --processes starts that many, one after the other, each building the
models in another order, and prints the medians of theirs. With --cpu-time it counts the process's time on the CPU and
prints minima: with --threads 1 that says something while the machine does other work, too.
"""

import argparse
import functools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest import mock

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import petx.tuners
from petx.bench import layers, peers
from petx.bench.case import FROZEN, PETX

WITHOUT: dict[str, dict[str, Any]] = {
    "without query transformations": dict(query_transform=False),
    "without experts": dict(experts=0),
    "without dropout": dict(dropout=0.0),
}
OPTIMIZER, OPERATORS, PRODUCTS = "petx's optimizer", "petx's operators alone", "their products alone"
SEED, DROPOUT = torch.tensor([1]), layers.DROPOUT

Call = Callable[[], object]


def steps(sizes: dict[str, int], first: int = 0) -> dict[str, Call]:
    """Name -> one whole step; the models are built one after the other from that of number ``first`` on."""
    case = layers.petal_step(torch.float32, **sizes)
    problem = case.make(case, "cpu")
    arms = {arm.name: arm for arm in case.arms}
    built, names = {}, [PETX, peers.LITERAL, FROZEN, *WITHOUT]
    for name in names[first % len(names) :] + names[: first % len(names)]:
        config = functools.partial(petx.tuners.PetalConfig, **WITHOUT.get(name, {}))
        with mock.patch.object(petx.tuners, "PetalConfig", config):
            built[name] = arms[PETX if name in WITHOUT else name].build(case, problem)[0]
    return {name: functools.partial(_fresh, run, problem) for name, run in built.items()}


def _fresh(run: Callable[..., object], problem: layers.Problem) -> None:
    run(problem.fresh())


def operators(
    *, batch: int = 2, text: int = 32, layers: int = 12, hidden_size: int = 768, encoder_hidden_size: int = 1408
) -> tuple[Call, Call]:
    """Calls of the operators and products that a step makes, and of the products of these alone, through torch."""
    d, image, rows = hidden_size, encoder_hidden_size, batch * (32 + text)
    groups = [(rows, d, 3)] * layers + [(32 * batch, d, 1), (257 * batch, 0, 2)] * ((layers + 1) // 2)
    pairs = [_group(n, d_in, d, k) for n, d_in, k in groups]
    pairs += [_projected(257 * batch, image), _experts(batch, rows // batch, d)]
    pairs += [_cores(n) for n in (3 * layers + (layers + 1) // 2, 2 * ((layers + 1) // 2))]
    pairs += [_transformation(batch, length, d) for length in (32, text)] * layers
    return tuple(functools.partial(_all, calls) for calls in zip(*pairs, strict=True))  # type: ignore[return-value]


def _all(calls: tuple[Call, ...]) -> None:
    for call in calls:
        call()


def _group(rows: int, d_in: int, d: int, count: int) -> tuple[Call, Call]:
    """The update of ``count`` projections; ``d_in`` is 0 if the input comes projected."""
    rank, random, op = layers.PETAL_RANK, torch.randn, torch.ops.petx
    x, u = random(rows, d_in or rank), random(rank, d_in) if d_in else None
    v, cores = random(d, rank), random(count, rank, rank)
    bases, douts = (list(random(count, rows, d)) for _ in range(2))
    narrow = random(rows, rank)

    def run() -> None:
        hidden = op.mode_update_fwd(x, u, v, cores, bases, SEED, DROPOUT, False)[0]
        op.mode_update_bwd(douts, 2**count - 1, x, u, v, cores, SEED, hidden, 15, 15, DROPOUT, False)

    def products() -> None:
        if u is not None:  # x U^T; its backward's two
            torch.mm(x, u.T), torch.mm(narrow.T, x), torch.mm(narrow, u)
        for core, dout in zip(cores, douts, strict=True):
            torch.mm(torch.mm(narrow, core), v.T)
            torch.mm(dout.T, narrow), torch.mm(torch.mm(dout, v), core.T), torch.mm(narrow.T, narrow)

    return run, products


def _projected(rows: int, d_in: int) -> tuple[Call, Call]:
    """The image's x U^T, once for all layers, and U's gradient."""
    x, u, narrow = torch.randn(rows, d_in), torch.randn(layers.PETAL_RANK, d_in), torch.randn(rows, layers.PETAL_RANK)
    run = lambda: (torch.mm(x, u.T), torch.mm(narrow.T, x))  # noqa: E731
    return run, run


def _experts(batch: int, length: int, d: int) -> tuple[Call, Call]:
    stacked, experts = layers.EXPERTS * 64, layers.EXPERTS
    x, down, up = torch.randn(batch, length, d), torch.randn(stacked, d), torch.randn(d, stacked)
    tensors = (x, down, torch.zeros(stacked), up, torch.zeros(experts, d), *[None] * 4)
    options, flat, op = (experts, 0, experts, 0, 0.6, 0.4), x.view(-1, d), torch.ops.petx

    def run() -> None:
        y, *kept = op.expert_mixture_fwd(*tensors, *options)
        op.expert_mixture_bwd(y, *tensors, *kept, 31, 31, *options)

    def products() -> None:
        hidden = torch.mm(flat, down.T)
        torch.mm(hidden, up.T), torch.mm(flat.T, hidden), torch.mm(torch.mm(flat, up).T, flat), torch.mm(hidden, down)

    return run, products


def _cores(count: int) -> tuple[Call, Call]:
    rank, op = layers.PETAL_RANK, torch.ops.petx
    core, modes = torch.randn(rank, rank, rank), torch.randn(count, rank)
    flat = core.view(-1, rank)

    def run() -> None:
        op.mode_cores_bwd(op.mode_cores_fwd(core, modes, None, 0, 1.0), core, modes, None, 3, 3, 0, 1.0)

    def products() -> None:
        made = torch.mm(modes, flat.T)
        torch.mm(made, flat), torch.mm(made.T, modes)

    return run, products


def _transformation(batch: int, length: int, d: int) -> tuple[Call, Call]:
    """A query transformation, which has no product."""
    x, to, (scale, shift), op = (
        torch.randn(batch, length, d),
        torch.randn(batch, length, d),
        torch.randn(2, d),
        torch.ops.petx,
    )

    def run() -> None:
        y = op.query_transformation_fwd(x, scale, shift, to, 0.1)
        op.query_transformation_bwd(y, x, scale, 7, 7, 0.1)

    return run, lambda: None


def measured(calls: dict[str, Call], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Milliseconds of every call in every round, after two more that do not count, and those of petx's optimizer."""
    found: dict[str, list[float]] = {name: [] for name in (*calls, OPTIMIZER)}
    names, updating = list(calls), []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: updating.append(-clock())),
        register_optimizer_step_post_hook(lambda *_: updating.append(clock())),
    ]
    try:
        for k in range(rounds + 2):
            for name in names[k % len(names) :] + names[: k % len(names)]:
                updating.clear()
                begin = clock()
                calls[name]()
                found[name].append(1e3 * (clock() - begin))
                if name == PETX:
                    found[OPTIMIZER].append(1e3 * sum(updating))
    finally:
        for handle in handles:
            handle.remove()
    return {name: times[2:] for name, times in found.items()}


Times = dict[str, list[float]]


def typical(found: Times, cpu_time: bool) -> tuple[dict[str, float], float]:
    """Milliseconds of every part, and literal eager over petx: the median of the rounds."""
    ms = {name: (min if cpu_time else statistics.median)(times) for name, times in found.items()}
    return ms, statistics.median(a / b for a, b in zip(found[peers.LITERAL], found[PETX], strict=True))


def table(parts: Sequence[dict[str, float]], ratios: Sequence[float]) -> str:
    """Rows of parts of petx's step, and how whole steps compare; medians of the processes, which gave one of each."""
    ms = {name: statistics.median(part[name] for part in parts) for name in parts[0]}
    rows = [(name, ms[name]) for name in (peers.LITERAL, PETX, FROZEN)]
    rows += [("petx beyond the frozen model", ms[PETX] - ms[FROZEN]), (OPERATORS, ms[OPERATORS])]
    rows += [(PRODUCTS, ms[PRODUCTS]), (OPTIMIZER, ms[OPTIMIZER])]
    rows += [(f"petx less petx {name}", ms[PETX] - ms[name]) for name in WITHOUT]
    lines = ["| | ms |", "| --- | ---: |", *(f"| {name} | {value:.1f} |" for name, value in rows), ""]
    lines.append(f"literal eager over petx, median of the rounds: {statistics.median(ratios):.3f}")
    if len(ratios) > 1:
        low, *_, high = sorted(ratios)
        lines[-1] += f", of {len(ratios)} processes: {low:.3f} to {high:.3f}"
    return "\n".join(lines)


def measure(given: argparse.Namespace, sizes: dict[str, int], first: int = 0) -> tuple[dict[str, float], float]:
    """:func:`typical` of this process, which builds the models from that of number ``first`` on."""
    before = torch.get_num_threads()
    torch.set_num_threads(given.threads)
    try:
        of_operators = {name: size for name, size in sizes.items() if name != "intermediate_size"}
        alone = dict(zip((OPERATORS, PRODUCTS), operators(**of_operators), strict=True))
        clock = time.process_time if given.cpu_time else time.perf_counter
        return typical(measured(steps(sizes, first) | alone, given.rounds, clock), given.cpu_time)
    finally:
        torch.set_num_threads(before)


def measure_anew(given: argparse.Namespace, sizes: dict[str, int], first: int) -> tuple[dict[str, float], float]:
    """:func:`measure` in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, given, sizes, first).result()


def main(arguments: list[str] | None = None, sizes: dict[str, int] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="torch's threads")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each, after two that do not count")
    parser.add_argument("--processes", type=int, default=0, help="processes to start (default: this one alone)")
    parser.add_argument("--cpu-time", action="store_true", help="minima of the process's CPU time")
    given, sizes = parser.parse_args(arguments), sizes or {}
    if given.processes:
        found = [measure_anew(given, sizes, first) for first in range(given.processes)]
    else:
        found = [measure(given, sizes)]
    print(table(*zip(*found, strict=True)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
