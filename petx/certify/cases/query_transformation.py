"""Cases of `query_transformation`, PETAL's residual by channel."""

from dataclasses import dataclass, field
from typing import Any

import torch

from petx import reference
from petx.bench.case import BenchCase
from petx.certify.cases.case import Case, Results, Tensors, Trial


@dataclass(frozen=True)
class TransformationCase(Case):
    """``apart``: how many more rows a sample has in the tensor that x or ``to`` is a slice of, by name; ``wider``: how
    many more columns."""

    apart: dict[str, int] = field(default_factory=dict)
    wider: dict[str, int] = field(default_factory=dict)

    operation = "query_transformation"
    ACTIVATIONS = ("x", "to")

    def sliced(self, tensors: Tensors) -> Tensors:
        """The values of the tensors, those of activations as such slices."""
        found = dict(tensors)
        for name in self.ACTIVATIONS if self.apart or self.wider else ():
            if name in tensors:
                *_, rows, columns = (1, *tensors[name].shape)
                more = (0, self.wider.get(name, 0), 0, self.apart.get(name, 0))[: 2 * min(2, tensors[name].dim())]
                whole = torch.nn.functional.pad(tensors[name], more)
                # Not by an index, which asks for a device's guard: these cases also run on a GPU that is not there.
                whole = whole.narrow(-2, 0, rows) if whole.dim() > 1 else whole
                found[name] = whole.narrow(-1, 0, columns)
        return found

    def call(self, tensors: dict[str, Any], extras: Tensors) -> Results:
        return super().call(self.sliced(tensors), extras)

    def expected(self, tensors: Tensors) -> Results:
        arguments: dict[str, Any] = {**tensors, **self.options}
        return reference.query_transformation(**arguments)


def transformation(
    name: str,
    batch: tuple[int, ...] = (3, 5),
    d: int = 24,
    *,
    to: bool = True,
    apart: int | dict[str, int] = 0,
    wider: dict[str, int] | None = None,
    **options: Any,
) -> TransformationCase:
    """Rows of ``batch``, added to others or, without ``to``, the residual alone. A number ``apart`` is of both."""
    shapes = {"x": (*batch, d), "scale": (d,), "shift": (d,)} | ({"to": (*batch, d)} if to else {})
    rows = apart if isinstance(apart, dict) else dict.fromkeys(TransformationCase.ACTIVATIONS, apart) if apart else {}
    return TransformationCase(name, shapes, options, rows, wider or {})


# So that a thread has several turns of rows, as of many.
FEW_SPLITS = {"PETX_CUDA_SPLITS": "2"}

CERTIFIED = [
    Trial(transformation("whole")),
    Trial(transformation("residual", to=False, factor=-1.5)),
    Trial(transformation("apart", apart=3), each_gradient=True),
    Trial(transformation("four-dimensions", batch=(2, 3, 4), apart=2)),
    Trial(transformation("one-value", batch=(1,), d=1)),
    Trial(transformation("misaligned", batch=(2, 33), d=72, apart=8), misaligned=True),
    Trial(transformation("odd", batch=(3, 43), d=131, apart=5, factor=0.7)),
    Trial(transformation("one-row-samples", batch=(150, 1), d=40, apart=1)),
    Trial(transformation("splits", batch=(5, 113), d=136), each_gradient=True),
    Trial(transformation("many-splits", batch=(1, 2200), d=24)),
    Trial(transformation("long-splits", batch=(6, 70), d=72, apart=3), environment=FEW_SPLITS),
    Trial(transformation("uneven", batch=(2, 9), d=131, wider={"x": 5, "to": 5}), environment=FEW_SPLITS),
]

# The width is d, and in the rank's place too, since there is no other size.
SHAPES = [
    (256, 768, 768),
    (1024, 768, 768),
    (4112, 768, 768),
    (16384, 768, 768),
    (4096, 2048, 2048),
    (8192, 4096, 4096),
]


def timed(rows: int, width: int, rank: int, dtype: torch.dtype) -> BenchCase:
    from petx.bench.ops.query_transformation import case as benchmark

    return benchmark(rows, dtype, "certify", d=width)
