"""Where the time of a Q-Former's training step with PETAL goes, beside the literal eager form and the frozen model.

    python -m benchmarks.qformer_step --threads 2 --rounds 20

takes turns, so that a machine that slows down slows all, and prints medians in milliseconds: whole steps, petx's step
without a part of PETAL, the optimizer, and the step's operators and added products alone, at its shapes. With
--cpu-time it counts the process's time on the CPU and prints minima: with --threads 1 that says something while the
machine does other work, too.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
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


def steps(sizes: dict[str, int]) -> dict[str, Call]:
    """Name -> one whole step."""
    case = layers.petal_step(torch.float32, **sizes)
    problem = case.make(case, "cpu")
    arms = {arm.name: arm for arm in case.arms}
    built = {name: arms[name].build(case, problem)[0] for name in (PETX, peers.LITERAL, FROZEN)}
    for name, changes in WITHOUT.items():
        with mock.patch.object(petx.tuners, "PetalConfig", functools.partial(petx.tuners.PetalConfig, **changes)):
            built[name] = arms[PETX].build(case, problem)[0]
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


def table(found: dict[str, list[float]], typical: Callable[[list[float]], float]) -> str:
    """Rows of parts of petx's step, and how whole steps compare."""
    ms = {name: typical(times) for name, times in found.items()}
    rows = [(name, ms[name]) for name in (peers.LITERAL, PETX, FROZEN)]
    rows += [("petx beyond the frozen model", ms[PETX] - ms[FROZEN]), (OPERATORS, ms[OPERATORS])]
    rows += [(PRODUCTS, ms[PRODUCTS]), (OPTIMIZER, ms[OPTIMIZER])]
    rows += [(f"petx less petx {name}", ms[PETX] - ms[name]) for name in WITHOUT]
    ratio = statistics.median(a / b for a, b in zip(found[peers.LITERAL], found[PETX], strict=True))
    lines = ["| | ms |", "| --- | ---: |", *(f"| {name} | {value:.1f} |" for name, value in rows)]
    return "\n".join([*lines, "", f"literal eager over petx, median of the rounds: {ratio:.3f}"])


def main(arguments: list[str] | None = None, sizes: dict[str, int] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="torch's threads")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each, after two that do not count")
    parser.add_argument("--cpu-time", action="store_true", help="minima of the process's CPU time")
    given, sizes = parser.parse_args(arguments), sizes or {}
    before = torch.get_num_threads()
    torch.set_num_threads(given.threads)
    try:
        of_operators = {name: size for name, size in sizes.items() if name != "intermediate_size"}
        calls = steps(sizes) | dict(zip((OPERATORS, PRODUCTS), operators(**of_operators), strict=True))
        clock = time.process_time if given.cpu_time else time.perf_counter
        print(table(measured(calls, given.rounds, clock), min if given.cpu_time else statistics.median))
    finally:
        torch.set_num_threads(before)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
