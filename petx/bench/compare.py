"""What got slower since an earlier run, and which ratios came again."""

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from petx.bench.case import FLOORS, PETX
from petx.errors import UserError

Record = dict[str, Any]  # a part of results.json: all of it, a case, a summary

VERSION = 2  # of results.json
TOLERANCE = 0.10
SAME_MACHINE = ("device", "threads", "torch")


def load(path: str | Path) -> Record:
    """An earlier ``results.json``; raises UserError if it is none."""
    try:
        with open(path, encoding="utf-8") as file:
            results = json.load(file)
    except OSError as error:
        raise UserError(f"--compare: cannot read {str(path)!r}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"--compare: {str(path)!r} is not JSON: {error}") from error
    if not isinstance(results, dict) or "version" not in results or "cases" not in results:
        raise UserError(f"--compare: {str(path)!r} is not a results.json of petx bench")
    if results["version"] != VERSION:
        raise UserError(
            f"--compare: {str(path)!r} is version {results['version']!r} of results.json, this petx reads {VERSION}"
        )
    return results


def regressions(now: Record, before: Record, tolerance: float = TOLERANCE) -> tuple[list[str], list[str]]:
    """(regressions, notes): cases in which petx got slower, in words.

    On the same machine, threads and torch: petx's median grew by more than ``tolerance`` and its spread does not
    overlap with the earlier one. Elsewhere times do not compare, and the ratio to the best peer is taken in place of
    them, without spreads and with twice the tolerance.
    """
    differing = [n for n in SAME_MACHINE if now["machine"].get(n) != before["machine"].get(n)]
    notes = []
    if differing:
        said = ", ".join(f"{n}: {before['machine'].get(n)} then, {now['machine'].get(n)} now" for n in differing)
        notes.append(f"another machine or torch ({said}), so ratios to the best peer are compared, not times")
    else:
        inside, outside = reproduced(now, before)
        notes.append(f"{len(inside)} of {len(inside) + len(outside)} ratios lie within the spread of the earlier ones")
        notes += [f"outside it: {text}" for text in outside]
    found = []
    for case, old in _in_both(now, before):
        if case["sizes"] != old["sizes"]:
            notes.append(f"{_name(case)}: other sizes than then, not compared")
            continue
        for direction, new_time in times_of(case).items():
            old_time = times_of(old).get(direction)
            if old_time is None:
                continue
            if differing:
                new_ratio, old_ratio = best_ratio(case, direction), best_ratio(old, direction)
                if new_ratio and old_ratio and new_ratio < old_ratio * (1 - 2 * tolerance):
                    found.append(
                        f"{_name(case)} {direction}: {old_ratio:.2f}x the best peer then, {new_ratio:.2f}x now"
                    )
            elif new_time["median"] > old_time["median"] * (1 + tolerance) and new_time["low"] > old_time["high"]:
                then, current = old_time["median"] * 1e3, new_time["median"] * 1e3
                found.append(
                    f"{_name(case)} {direction}: {then:.3g} ms then, {current:.3g} ms now ({current / then - 1:+.0%})"
                )
    return found, notes


def reproduced(now: Record, before: Record) -> tuple[list[str], list[str]]:
    """(inside, outside), in words: ratios whose median lies within the earlier run's spread, and those outside it."""
    found: tuple[list[str], list[str]] = [], []
    for case, old in _in_both(now, before):
        if case["sizes"] != old["sizes"]:
            continue
        for arm, direction in itertools.product(case["arms"], times_of(case)):
            new_ratio, old_ratio = ratio_of(case, arm, direction), ratio_of(old, arm, direction)
            if arm == PETX or not (new_ratio and old_ratio):
                continue
            within = old_ratio["low"] <= new_ratio["median"] <= old_ratio["high"]
            then = "{median:.2f}x ({low:.2f} to {high:.2f})".format(**old_ratio)
            found[not within].append(f"{_name(case)} {direction}, {arm}: {then} then, {new_ratio['median']:.2f}x now")
    return found


def _in_both(now: Record, before: Record) -> list[tuple[Record, Record]]:
    """Pairs of a case and the same one of the earlier run, if both were measured."""
    earlier = {_key(case): case for case in before["cases"] if "arms" in case}
    return [(case, earlier[_key(case)]) for case in now["cases"] if "arms" in case and _key(case) in earlier]


def by_dtype(cases: Iterable[Record]) -> list[Record]:
    """Cases as a reader looks for them: those of a dtype together, the widest first."""
    order = ("float32", "bfloat16", "float16")
    return sorted(cases, key=lambda case: order.index(case["dtype"]) if case["dtype"] in order else len(order))


def times_of(case: Record, arm: str = "petx") -> dict[str, Record]:
    """direction -> summary of one arm; empty if it has none."""
    return {d: v for d, v in case.get("arms", {}).get(arm, {}).items() if isinstance(v, dict)}


def ratio_of(case: Record, arm: str, direction: str) -> Record | None:
    """Summary of an arm's time over petx's, round by round, or None if it was not measured."""
    return times_of(case, arm).get(direction, {}).get("ratio")


def best_ratio(case: Record, direction: str) -> float | None:
    """Time of the fastest peer over petx's, or None without one."""
    peers = [ratio_of(case, arm, direction) for arm in case["arms"] if arm not in (PETX, *FLOORS)]
    return min((ratio["median"] for ratio in peers if ratio), default=None)


def _key(case: Record) -> tuple[str, str, str]:
    return case["operation"], case["name"], case["dtype"]


def _name(case: Record) -> str:
    return f"{case['operation']}/{case['name']} {case['dtype']}"
