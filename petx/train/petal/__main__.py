"""``python -m petx.train.petal``, for torchrun; ``petx train petal`` is the same."""

import sys

from petx.cli import run

run(["train", "petal", *sys.argv[1:]])
