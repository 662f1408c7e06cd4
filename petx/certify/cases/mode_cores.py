"""Cases of `mode_cores`, the cores of all mode vectors."""

from dataclasses import dataclass

from petx import reference
from petx.certify.cases.case import Case


@dataclass(frozen=True)
class CoresCase(Case):
    operation = "mode_cores"

    def mean_of(self, name):
        return 0.2 if name == "threshold" else 0.0

    def call(self, tensors, extras):
        return super().call({"threshold": None} | tensors, extras)

    def expected(self, tensors):
        return reference.mode_cores(**tensors, **self.options)


def cores(name, count=9, rank=6, *, core="full", threshold=1, **options):
    """``count`` mode vectors; ``threshold`` is the number of thresholds of a gate."""
    shapes = {"core": (rank,) * (3 if core == "full" else 1), "modes": (count, rank)}
    if options.get("gate", "none") != "none":
        shapes["threshold"] = (threshold,)
    return CoresCase(name, shapes, options)


SIGMOID = dict(gate="sigmoid", temperature=0.1)
