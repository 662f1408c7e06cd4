"""Times that a card measured beside those that the model gives for an H100, as a table.

    python -m tests.emulator.cost.joined COST.json RESULTS.json

COST.json is `python -m tests.emulator.cost --json`, RESULTS.json is what `python -m tests.emulator.cost.on_card` wrote
on the card, or `petx bench`, which has some of these calls. A row is a call that both have: the same operation, dtype
and sizes. The last column is what the model is off by.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from petx.bench import peers
from petx.bench.case import PETX
from tests.emulator.cost.shapes import by_label

ARMS = {"petx": PETX, "eager": peers.BEST, "inductor": peers.COMPILED}  # the model's name -> the benchmarks'
COLUMNS = ("call", "direction", *(f"{name} {how} µs" for name in ARMS for how in ("modelled", "measured")))
COLUMNS += ("petx measured / modelled",)


def rows(cost: dict[str, Any], results: dict[str, Any]) -> list[list[str]]:
    """Cells of every call and direction of which ``cost`` has a model and ``results`` a measurement."""
    known = by_label()
    found = []
    for label, modelled in cost.items():
        case = known[label]
        dtype = str(case.dtype).removeprefix("torch.")
        for measured in results["cases"]:
            if (measured["operation"], measured["dtype"], measured["sizes"]) != (case.operation, dtype, case.sizes):
                continue
            for direction, counts in modelled.items():
                model = counts["modelled_us"]
                times = {name: measured.get("arms", {}).get(arm, {}).get(direction) for name, arm in ARMS.items()}
                if times["petx"] is None:
                    continue
                cells = [label, direction]
                for name, time in times.items():
                    cells += [f"{model[name]:.0f}", "-" if time is None else f"{1e6 * time['median']:.0f}"]
                found.append([*cells, f"{1e6 * times['petx']['median'] / model['petx']:.2f}"])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.emulator.cost.joined", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("cost", type=Path, help="what `python -m tests.emulator.cost --json` wrote")
    parser.add_argument("results", type=Path, help="what was measured on a card")
    arguments = parser.parse_args()
    cost, results = (json.loads(path.read_text(encoding="utf-8")) for path in (arguments.cost, arguments.results))
    found = rows(cost, results)
    if not found:
        parser.error(f"{arguments.results} has no case of the calls in {arguments.cost}")
    print(
        f"Modelled for an H100 from counts, measured on {results['machine'].get('device', 'the card of the report')}.\n"
    )
    print(f"| {' | '.join(COLUMNS)} |\n| --- | --- |{' ---: |' * (len(COLUMNS) - 2)}")
    for cells in found:
        print(f"| {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
