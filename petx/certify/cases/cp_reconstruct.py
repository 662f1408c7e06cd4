"""Cases of `cp_reconstruct`, PETAL's adapted weights written out."""

from dataclasses import dataclass

from petx import reference
from petx.certify.cases.case import Case


@dataclass(frozen=True)
class ReconstructCase(Case):
    """Weight k is the tensor ``weight k``; the factors come first, so that a test has one to differentiate."""

    operation = "cp_reconstruct"

    def mean_of(self, name):
        return 0.2 if name == "threshold" else 0.0

    @staticmethod
    def arguments(tensors):
        tensors = {"threshold": None} | tensors
        return {
            "weights": [t for name, t in tensors.items() if name.startswith("weight ")],
            **{name: tensors[name] for name in ("u", "v", "cores", "threshold")},
        }

    def call(self, tensors, extras):
        return super().call(self.arguments(tensors), extras)

    def expected(self, tensors):
        return reference.cp_reconstruct(**self.arguments(tensors), **self.options)


def reconstruct(name, modules=2, d_out=24, d_in=40, rank=6, *, core="full", threshold=1, **options):
    """K weights that share factors; ``threshold`` is the number of thresholds of a gate."""
    shapes = {"u": (rank, d_in), "v": (d_out, rank)}
    shapes["cores"] = (modules, rank, rank) if core == "full" else (modules, rank)
    if options.get("gate", "none") != "none":
        shapes["threshold"] = (threshold,)
    return ReconstructCase(name, shapes | {f"weight {k}": (d_out, d_in) for k in range(modules)}, options)


SIGMOID = dict(gate="sigmoid", temperature=0.1)
