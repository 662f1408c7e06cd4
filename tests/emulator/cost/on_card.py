"""Measures on a GPU the calls whose cost is modelled, beside eager torch and torch.compile.

    python -m tests.emulator.cost.on_card RESULTS.json [--only TEXT] [--seconds S] [--device cpu]

RESULTS.json is like that of `petx bench`, which measures shapes of its own; it is written after every call.
"""

import argparse
import sys
from pathlib import Path

import torch

from petx.bench import machine, peers
from petx.bench.case import select
from petx.bench.run import attempt, describe
from petx.files import write_json
from tests.emulator.cost.shapes import by_label

PEERS = (peers.BEST, peers.COMPILED)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.emulator.cost.on_card", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("results", type=Path, help="the JSON file to write")
    parser.add_argument("--only", help="calls whose label has this text", default="")
    parser.add_argument("--seconds", help="of each call", type=float, default=2.0)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here")
    results = {"machine": machine.facts(arguments.device), "cases": []}
    for label, case in by_label().items():
        if arguments.only in label:
            print(label, flush=True)
            [narrowed] = select([case], peers=PEERS)
            measured = attempt(narrowed, arguments.device, arguments.seconds, lambda text: print(text, flush=True))
            results["cases"].append(describe(case) | measured)
            write_json(arguments.results, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
