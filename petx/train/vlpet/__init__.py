"""VL-PET on a frozen host, side by side with other ways to tune it (arXiv 2308.09804).

    petx train vlpet                                   the main job: easy-VQA, a few minutes on two CPU cores
    petx train vlpet --level small --seeds 3           another gate; three seeds, mean and spread
    petx train vlpet --with scratch,random-host        two control arms more
    petx train vlpet --resume                          go on after an interruption, or add arms and seeds to a run
    torchrun --nproc_per_node 2 -m petx.train.vlpet    each batch shared by two processes

docs/training.md says what is written where, and how to train on data of one's own.
"""

from petx.train import run as _run
from petx.train.vlpet import arguments
from petx.train.vlpet.recipe import RECIPE

__all__ = ["RECIPE", "main", "run"]

run = _run.run


def main(argv=None):
    """Run the recipe for a command line; returns the exit code."""
    return _run.main(arguments.parse(argv, __doc__))
