"""Cases of `query_transformation`, PETAL's residual by channel."""

from petx.certify.cases.query_transformation import TransformationCase, transformation

__all__ = ["TransformationCase", "transformation", "CASES", "FEW", "GRADCHECKED", "WIDE"]

CASES = [
    transformation("whole"),
    transformation("residual", to=False),
    transformation("rows", batch=(7,)),
    transformation("four-dimensions", batch=(2, 3, 4), apart=2),
    transformation("apart", apart=3),
    transformation("residual-apart", to=False, apart=1, factor=-2.5),
    # odd sizes, on and beside the borders of vectors, splits and threads' shares
    transformation("one-value", batch=(1,), d=1),
    transformation("odd", batch=(3, 7), d=37, apart=5, factor=0.7),
    transformation("one-row-samples", batch=(67, 1), d=9, apart=1),
    transformation("threads", batch=(2, 100), d=700, apart=3),
    transformation("splits", batch=(3, 467), d=131),
    # of rows that lie apart by other than whole vectors, each tensor's otherwise
    transformation("to-apart", apart={"to": 2}),
    transformation("x-wider", wider={"x": 1}),
    transformation("to-wider", wider={"to": 1}),
    transformation("odd-in-wider", d=37, wider={"x": 3, "to": 3}),
]

GRADCHECKED = [
    transformation("whole", batch=(2, 3), d=3),
    transformation("apart", batch=(2, 2), d=3, apart=1, factor=-0.6),
    transformation("residual", batch=(3,), d=2, to=False),
]

WIDE = [
    transformation("wide", batch=(2, 66), d=136),
    transformation("wide-apart", batch=(5, 33), d=136, apart=7),
    transformation("wide-odd", batch=(2, 67), d=131, apart=2),
    transformation("many-splits", batch=(1, 2200), d=24),
    transformation("long-splits", batch=(6, 70), d=72, apart=3),
]

FEW = "whole residual four-dimensions apart odd threads".split()
