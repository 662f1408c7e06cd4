"""VL-PET on a frozen host, side by side with other ways to tune it (arXiv 2308.09804).

    petx train vlpet                                   the main job: easy-VQA, some ten minutes on two CPU cores
    petx train vlpet --level small --seeds 3           another gate; three seeds, mean and spread
    petx train vlpet --with scratch,random-host        two control arms more
    petx train vlpet --resume                          go on after an interruption, or add arms and seeds to a run
    torchrun --nproc_per_node 2 -m petx.train.vlpet    each batch shared by two processes

docs/training.md says what is written where, and how to train on data of one's own.
"""

from petx.train.run import Run
from petx.train.vlpet import arguments
from petx.train.vlpet.recipe import RECIPE

__all__ = ["RECIPE", "main", "run"]


def run(settings: arguments.Settings) -> int:
    """Run the recipe with ``settings``; 0, or 1 if the saved adapter did not reproduce its score."""
    return Run(RECIPE, settings).execute()


def main(argv: list[str] | None = None) -> int:
    """Run the recipe for a command line; returns the exit code."""
    return Run(RECIPE, arguments.parse(argv, __doc__)).main()
