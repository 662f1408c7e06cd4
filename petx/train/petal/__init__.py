"""PETAL on the Q-Former of a frozen InstructBLIP, side by side with other ways to tune it (arXiv 2312.12458).

    petx train petal                                   the main job: easy-VQA, some twenty minutes on two CPU cores
    petx train petal --seeds 3 --with ablations        three seeds, mean and spread; PETAL without each of its parts
    petx train petal --core diagonal --ib variational  another PETAL
    petx train petal --host path/to/instructblip       a pretrained InstructBLIP, on the same questions
    petx train petal --resume                          go on after an interruption, or add arms and seeds to a run
    torchrun --nproc_per_node 2 -m petx.train.petal    each batch shared by two processes

docs/training.md says what is written where, and how to train on data of one's own.
"""

from petx.train.petal import arguments
from petx.train.petal.recipe import RECIPE
from petx.train.run import Run

__all__ = ["RECIPE", "main", "run"]


def run(settings: arguments.Settings) -> int:
    """Run the recipe with ``settings``; 0, or 1 if the saved adapter did not reproduce its score."""
    return Run(RECIPE, settings).execute()


def main(argv: list[str] | None = None) -> int:
    """Run the recipe for a command line; returns the exit code."""
    return Run(RECIPE, arguments.parse(argv, __doc__)).main()
