"""The redesign's targets beside what today's kernels take by the model, from the committed tables of counts.

    python -m tests.emulator.cost.targets [--all]

prints the table of docs/cost.md, in seconds and without nvcc; ``--all`` every counted call beside its peers. Modelled:
no GPU has run them.
"""

import argparse
import functools
import json
import sys
from dataclasses import dataclass

import torch

from tests.emulator.cost import contracts, report
from tests.emulator.cost.shapes import by_label

DIRECTIONS = ("fwd", "bwd")
CLOSE = 1.02  # two times that differ by less are one to the model


@dataclass(frozen=True)
class Target:
    """Microseconds of a call forward and backward together: before the redesign (from - to), and wanted after it."""

    call: str
    before: str
    wanted: int


TARGETS = [
    Target("gated_adapter/bart", "1,650-1,940", 270),
    Target("gated_adapter/bart-8192", "670-820", 95),
    Target("gated_adapter/bart-1024", "630-760", 35),
    Target("gated_adapter/t5", "775-835", 230),
    Target("mode_update/qkv-1024", "101-111", 30),
    Target("mode_update/qkv", "174", 60),
    Target("mode_update/image", "124-128", 50),
    Target("mode_update/wide", "260", 115),
    Target("expert_mixture/uniform-1024", "340", 40),
    Target("expert_mixture/uniform", "190", 75),
    Target("expert_mixture/uniform-16384", "328", 210),
    Target("expert_mixture/narrow-1024", "210", 35),
    Target("expert_mixture/narrow", "223", 45),
    Target("expert_mixture/narrow-16384", "299", 90),
    Target("cp_reconstruct/qformer", "865", 170),
    Target("mode_cores/qformer", "25", 15),
]


@dataclass(frozen=True)
class InstructionTarget:
    """Millions of PTX instructions that all threads execute for 128 of the call's tokens: before, and wanted."""

    call: str
    direction: str
    before: float
    wanted: float


INSTRUCTIONS = [
    InstructionTarget("gated_adapter/bart-1024", "fwd", 64.9, 8),
    InstructionTarget("gated_adapter/bart-1024", "bwd", 168, 20),
]


def executed(target: InstructionTarget) -> float:
    """Today's millions of instructions for 128 tokens."""
    kernels = json.loads(contracts.TABLE.read_text())[target.call][target.direction]
    tokens = by_label()[target.call].sizes["N"]
    return sum(kernel["instructions"] for kernel in kernels) * 128 / tokens / 1e6


def too_many() -> set[str]:
    """ "call direction" that executes more than its target."""
    return {f"{t.call} {t.direction}" for t in INSTRUCTIONS if executed(t) > t.wanted}


def instructions() -> str:
    lines = ["| call | direction | before | target | today | |", "| --- | --- | ---: | ---: | ---: | --- |"]
    for t in INSTRUCTIONS:
        said = "met" if executed(t) <= t.wanted else "missed"
        lines.append(f"| {t.call} | {t.direction} | {t.before:g} M | {t.wanted:g} M | {executed(t):.1f} M | {said} |")
    return "\n".join(lines)


@functools.cache
def times() -> dict[str, dict[str, dict[str, float]]]:
    """Call -> direction -> modelled microseconds of petx, eager and inductor, of all calls in the tables."""
    cases, found = by_label(), {}
    for path in (contracts.TABLE, contracts.PUBLISHED):
        for label, kept in json.loads(path.read_text()).items():
            found[label] = report.modelled(cases[label], kept)
    return found


def together(label: str, name: str) -> float:
    return sum(times()[label][direction][name] for direction in DIRECTIONS)


def missed() -> dict[str, float]:
    """Call -> what it takes, where that is more than its target."""
    now = {target.call: together(target.call, "petx") for target in TARGETS}
    return {target.call: now[target.call] for target in TARGETS if now[target.call] > target.wanted}


def better(label: str, of: dict[str, float]) -> float:
    """What petx is to be no slower than: the better of eager and inductor, in float32 eager."""
    return of["eager"] if by_label()[label].dtype == torch.float32 else min(of["eager"], of["inductor"])


def slower() -> dict[str, float]:
    """ "call direction" -> by what factor petx takes longer there than what it is to be no slower than."""
    found = {}
    for label, directions in times().items():
        for direction, of in directions.items():
            factor = of["petx"] / better(label, of)
            if factor > CLOSE:
                found[f"{label} {direction}"] = factor
    return found


def markdown() -> str:
    lines = [
        "| call | before | target | today | | eager | inductor |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for target in TARGETS:
        today, eager, inductor = (together(target.call, name) for name in ("petx", "eager", "inductor"))
        said = "met" if today <= target.wanted else "missed"
        peers = f"{eager:.0f} | {inductor:.0f}"
        lines.append(f"| {target.call} | {target.before} | {target.wanted} | {today:.0f} | {said} | {peers} |")
    return "\n".join(lines)


def against_peers() -> str:
    lines = [
        "| call | direction | petx µs | eager µs | inductor µs | petx / the better |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for label, directions in times().items():
        for direction, of in directions.items():
            cells = " | ".join(f"{of[name]:.0f}" for name in ("petx", "eager", "inductor"))
            lines.append(f"| {label} | {direction} | {cells} | {of['petx'] / better(label, of):.2f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.emulator.cost.targets", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--all", help="every call and direction beside its peers", action="store_true")
    print(against_peers() if parser.parse_args().all else f"{markdown()}\n\n{instructions()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
