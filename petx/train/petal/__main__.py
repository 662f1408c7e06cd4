"""``python -m petx.train.petal``, for torchrun; ``petx train petal`` is the same."""

import sys

from petx.cli import main

sys.exit(main(["train", "petal", *sys.argv[1:]]))
