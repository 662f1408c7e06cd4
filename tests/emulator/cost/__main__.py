"""What the kernels cost at the published shapes, counted from nvcc's PTX, and what an H100 would take by a model.

    python -m tests.emulator.cost [--only TEXT] [--json FILE] [--markdown FILE]
    python -m tests.emulator.cost --table [--published] [--only TEXT]

Modelled from counts: no GPU has run them. docs/cost.md explains the columns and the model.
"""

import argparse
import json
import sys
from pathlib import Path

from tests import emulator
from tests.emulator.cost import contracts, report
from tests.emulator.cost.counting import SAMPLE, measured
from tests.emulator.cost.registers import registers
from tests.emulator.cost.shapes import by_label, published, small
from tests.emulator.ptx import PtxEmulator, why_absent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.emulator.cost", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", help="calls whose label has this text", default="")
    parser.add_argument("--sample", help="blocks of each launch that are run", type=int, default=SAMPLE)
    parser.add_argument("--json", help="write all counts into this file", type=Path)
    parser.add_argument("--markdown", help="write the table into this file", type=Path)
    parser.add_argument("--table", help="renew the table that the tests hold to", action="store_true")
    parser.add_argument("--published", help="with --table: that of the published shapes", action="store_true")
    arguments = parser.parse_args()
    if arguments.published and not arguments.table:
        parser.error("--published goes with --table")
    if why_absent():
        parser.error(f"nothing can be counted: {why_absent()}")
    if arguments.table:
        path, cases = (contracts.PUBLISHED, published()) if arguments.published else (contracts.TABLE, small())
        cases = [case for case in cases if arguments.only in case.label]
        path.write_text(contracts.renewed(path, PtxEmulator(emulator.kernels()), cases))
        return 0
    kernels, known = PtxEmulator(emulator.kernels()), registers()
    rows, found = [], {}
    print(report.HEADER, flush=True)
    for label, case in by_label().items():
        if arguments.only not in label:
            continue
        found[label] = report.reported(case, measured(kernels, case, arguments.sample), known)
        for line in report.lines(label, found[label]):
            rows.append(line)
            print(line, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text("\n".join([report.HEADER, *rows]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
