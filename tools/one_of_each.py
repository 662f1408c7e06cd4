"""Runs the telling cases of every operation, forward and backward, and checks them: for tools that slow it a lot.

python tools/one_of_each.py cuda
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.cases import TABLES  # noqa: E402
from tests.checks import outputs_and_grads, wrong  # noqa: E402


def main(device):
    failures = 0
    for table in TABLES.values():
        cases = [case for case in table.CASES if case.name in table.FEW] + table.WIDE
        for case in cases:
            for dtype in (torch.float32, torch.bfloat16):
                tensors = case.inputs(dtype, device=device)
                said = wrong(outputs_and_grads(case.run, tensors), case, tensors)
                failures += said is not None
                print(f"{case} {dtype}: {said or 'right'}", flush=True)
    return failures > 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
