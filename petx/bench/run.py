"""Runs a set and keeps what it measured: ``results.json`` is written whole after every case."""

import datetime
import gc
import itertools
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from petx.bench import calls, compare, machine, process, table
from petx.bench.case import PETX, BenchCase, Unavailable, dtype_name, select
from petx.bench.compare import Record
from petx.bench.peers import BEST
from petx.bench.timing import LEAST_ROUNDS, Rounds, Say, measure, reason
from petx.files import write_json

SWEPT = (PETX, BEST)


def run(
    device: str,
    path: str | Path,
    *,
    quick: bool,
    seconds: float,
    minutes: float,
    visits: int = 1,
    cases: Iterable[str] | None = None,
    peers: Iterable[str] | None = None,
    growth: bool = True,
    figures: bool = True,
    command: str = "",
    say: Say | None = None,
) -> Record:
    """Measure the set for ``device`` into the JSON file ``path`` and return its contents.

    ``seconds`` per case, ``minutes`` for all: what is not reached by then is listed as skipped. All cases are gone
    through ``visits`` times, so that the rounds of each lie minutes apart and their spread tells how the machine
    changes.
    ``cases`` and ``peers`` are names (:func:`petx.bench.case.select`). An interrupt ends the run, with
    ``"interrupted": true``.
    """
    say = say or _say
    chosen = select(table.cases(device, quick), cases, peers)
    start = time.perf_counter()
    results: Record = {
        "version": compare.VERSION,
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": machine.facts(device),
        "settings": dict(quick=quick, seconds=seconds, minutes=minutes, visits=visits),
        "interrupted": False,
        "constants": None,
        "process": {},
        "cases": [],
        "growth": [],
    }

    def keep() -> None:
        results["elapsed_seconds"] = round(time.perf_counter() - start, 1)
        write_json(path, results)

    def rates_again() -> None:  # a shared machine may have been slower before
        say("the machine's own rates once more")
        results["constants"] = machine.better(results["constants"], machine.constants(device))

    try:
        say("the machine's own rates")
        results["constants"] = machine.constants(device)
        if figures:
            _process_figures(results["process"], device, quick, keep, say)
        keep()
        sweeping = growth and not cases and peers is None
        until = start + 60 * minutes * (0.85 if sweeping else 1.0)
        rounds: list[Rounds] = [{} for _ in chosen]

        def visit(number: int, case: BenchCase) -> Record:
            return attempt(case, device, seconds / visits, say, rounds[number], -(-LEAST_ROUNDS // visits))

        for number, case in enumerate(chosen):
            say(f"[{number + 1}/{len(chosen)}] {case}")
            record = describe(case)
            if reason_against := too_slow(case, results["constants"]):
                record["skipped"] = reason_against
            elif time.perf_counter() > until:
                record["skipped"] = f"not reached within {minutes:g} minutes"
            else:
                record |= visit(number, case)
            results["cases"].append(record)
            keep()
        if visits > 1:
            rates_again()
        for again, number in itertools.product(range(1, visits), range(len(chosen))):
            arms = results["cases"][number].get("arms")
            if arms and time.perf_counter() < until:
                say(f"[{number + 1}/{len(chosen)}] {chosen[number]}, visit {again + 1}")
                (case,) = select([chosen[number]], peers=[arm for arm in rounds[number] if arm != PETX])
                for arm, measured in visit(number, case).get("arms", {}).items():
                    arms[arm] |= measured
                keep()
        rates_again()
        if sweeping:
            for operation, size, swept in table.sweeps(device, quick):
                if time.perf_counter() > start + 60 * minutes:
                    break
                say(f"cost of {operation} against {size}")
                results["growth"].append(grow(operation, size, swept, device, seconds / 6, say))
                keep()
    except KeyboardInterrupt:
        say("interrupted; what was measured is kept")
        results["interrupted"] = True
    keep()
    return results


def _say(text: str) -> None:
    print(text, flush=True)


def describe(case: BenchCase) -> Record:
    """A case without its times, as JSON holds it."""
    work = {direction: list(pair) for direction, pair in case.work.items()}
    if work:
        work["fwd+bwd"] = [sum(values) for values in zip(work["fwd"], work["bwd"], strict=True)]
    return {
        "operation": case.operation,
        "name": case.name,
        "dtype": dtype_name(case.dtype),
        "sizes": case.sizes,
        "work": work,  # direction -> [FLOPs, bytes]
    }


def too_slow(case: BenchCase, constants: Record) -> str | None:
    """Why a case with a frozen model is left out: its products are torch's own, and a CPU without instructions for a
    dtype takes minutes for them. None if it is not."""
    rates = constants["gemm_flops_per_second"]
    own, single = rates.get(dtype_name(case.dtype)), rates.get("float32")
    if not case.frozen_products or not (own and single) or own > single / 20:
        return None
    return (
        f"torch multiplies {dtype_name(case.dtype)} at {own / 1e9:.1f} GFLOP/s here, so the frozen model takes minutes"
    )


def attempt(
    case: BenchCase,
    device: str,
    seconds: float,
    say: Say,
    rounds: Rounds | None = None,
    least_rounds: int = LEAST_ROUNDS,
) -> Record:
    """``{"arms": ...}`` or ``{"skipped": reason}``."""
    try:
        return {
            "arms": measure(
                case,
                device,
                seconds=seconds,
                rounds=rounds,
                least_rounds=least_rounds,
                say=lambda text: say(f"    {text}"),
            )
        }
    except Exception as error:  # the cases after it are worth having
        say(f"    skipped: {reason(error)}")
        return {"skipped": reason(error)}
    finally:
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


def grow(operation: str, size: str, cases: list[BenchCase], device: str, seconds: float, say: Say) -> Record:
    """Times of forward plus backward of cases in which one size grows, and the slope fitted to their logarithms."""
    points = []
    for case in select(cases, peers=[BEST]):
        outcome = attempt(case, device, seconds, say)
        if "arms" in outcome:
            times = {n: a["fwd+bwd"]["median"] for n, a in outcome["arms"].items() if "fwd+bwd" in a}
            points.append({"size": case.sizes[size], "sizes": case.sizes, "seconds": times})
    slopes = {}
    for name in SWEPT:
        pairs = [(p["size"], p["seconds"][name]) for p in points if name in p["seconds"]]
        if len(pairs) > 1:
            slopes[name] = slope(pairs)
    return {"operation": operation, "size": size, "points": points, "slopes": slopes}


def slope(pairs: Iterable[tuple[float, float]]) -> float:
    """Least-squares slope of log(time) over log(size): 1 if twice the size takes twice the time."""
    logs = [(math.log(x), math.log(y)) for x, y in pairs]
    mean_x, mean_y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in logs)
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / spread


def _process_figures(figures: Record, device: str, quick: bool, keep: Callable[[], None], say: Say) -> None:
    say("what a layer call costs beyond its operator")
    figures["call_overheads"] = calls.overheads(device)
    say("import time")
    figures["import_seconds"] = process.import_seconds(3 if quick else 5)
    keep()
    if quick:
        figures["wheel"] = {"unavailable": "not built by --quick"}
        return
    say("building the wheel")
    try:
        figures["wheel"] = process.wheel()
    except Unavailable as error:
        figures["wheel"] = {"unavailable": str(error)}
