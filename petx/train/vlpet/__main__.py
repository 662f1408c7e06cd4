"""``python -m petx.train.vlpet``, for torchrun; ``petx train vlpet`` is the same."""

import sys

from petx.cli import run

run(["train", "vlpet", *sys.argv[1:]])
