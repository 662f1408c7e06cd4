"""A machine with GPUs that are not there."""

import os
import sys
from pathlib import Path

from petx.certify.cards import Card, Cards

ROOT = Path(__file__).parents[2]
H100 = Card(0, "NVIDIA H100 80GB HBM3", (9, 0), 132, 81079, "580.65.06, CUDA 13.0")
T4 = Card(0, "Tesla T4", (7, 5), 40, 14912, "580.65.06, CUDA 13.0")
THOR = Card(0, "NVIDIA Thor", (11, 0), 20, 125000, "580.65.06, CUDA 13.0")
MIG = Card(0, "NVIDIA A100-SXM4-40GB MIG 1g.5gb", (8, 0), 14, 4864, "580.65.06, CUDA 13.0")
BUILD = {"cuda_mode": "full", "cuda_architectures": ["8.0", "9.0", "10.0", "12.0+PTX"], "cuda_absent_reason": ""}


class FakeCards(Cards):
    """Cards by number, whose child is a script with arguments; ``started`` counts the children."""

    def __init__(self, *cards, child=("fake_child.py", "right")):
        self.cards, self.script = cards, child
        self.started, self.captures = 0, False

    def count(self):
        return len(self.cards)

    def current(self):
        return 0

    def card(self, index):
        card = self.cards[index]
        return Card(index, card.name, card.capability, card.multiprocessors, card.memory, card.driver)

    def capturing(self):
        return self.captures

    def child(self, index):
        self.started += 1
        script, *arguments = map(str, self.script)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        if script == "fake_child.py":
            return [sys.executable, "-I", str(ROOT / "tests" / "certify" / script), *arguments], environment
        return [sys.executable, "-m", f"tests.certify.{script.removesuffix('.py')}", *arguments], environment


class OnGPU:
    """What the choice of a path asks of a tensor on a GPU."""

    is_cpu, is_cuda = False, True

    def __init__(self, dtype, *shape, device=0):
        self.dtype, self.shape, self.device = dtype, shape, device

    def get_device(self):
        return self.device

    def numel(self):
        count = 1
        for size in self.shape:
            count *= size
        return count
