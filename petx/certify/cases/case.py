"""What a case is, whatever its operation."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from petx import functional

Tensors = dict[str, torch.Tensor]  # by the arguments' names
Results = torch.Tensor | tuple[torch.Tensor, ...]
Device = torch.device | str


@dataclass(frozen=True)
class Case:
    """One call of an operation: shapes and options; ``inputs`` makes the tensors from a seed, ``run`` calls the public
    function, ``expected`` the readable reference.

    Sizes are small: they straddle the kernels' row blocks and token splits, nothing more.
    """

    name: str
    shapes: dict[str, tuple[int, ...]]  # argument -> shape; absent arguments are None
    options: dict[str, Any] = field(default_factory=dict)

    operation: ClassVar[str]
    ACTIVATIONS: ClassVar[tuple[str, ...]] = ()  # arguments that have the batch's dimensions and values of about 1

    def __str__(self) -> str:
        return f"{self.operation}-{self.name}"

    def inputs(
        self, dtype: torch.dtype, *, requires_grad: bool = True, seed: int = 0, device: Device = "cpu"
    ) -> Tensors:
        """Argument -> leaf tensor. Drawn in float64 and rounded once, so every dtype sees the same numbers."""
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for name, shape in self.shapes.items():
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            value = value * (1.0 if name in self.ACTIVATIONS else 0.3) + self.mean_of(name)
            tensors[name] = value.to(device, self.dtype_of(name, dtype)).requires_grad_(requires_grad)
        return tensors

    def mean_of(self, name: str) -> float:
        return 0.0

    def dtype_of(self, name: str, dtype: torch.dtype) -> torch.dtype:
        """Argument ``name``'s dtype in a call in ``dtype``."""
        return dtype

    def result_dtype(self, tensors: Tensors) -> torch.dtype:
        return next(iter(tensors.values())).dtype

    def extras(self, device: Device = "cpu") -> Tensors:
        """The arguments that carry no gradient and are tensors."""
        return {}

    def call(self, tensors: dict[str, Any], extras: Tensors) -> Results:
        """The public function's result."""
        return getattr(functional, self.operation)(**tensors, **extras, **self.options)

    def run(self, tensors: Tensors) -> Results:
        return self.call(tensors, self.extras(next(iter(tensors.values())).device))

    def expected(self, tensors: Tensors) -> Results:
        """The reference's result, in the tensors' dtype."""
        raise NotImplementedError

    def empty(self, batch: tuple[int, ...]) -> "Case":
        """The same case with no rows: ``batch`` in place of the batch's dimensions."""
        shapes = {n: (*batch, s[-1]) if n in self.ACTIVATIONS else s for n, s in self.shapes.items()}
        return replace(self, shapes=shapes)


# Blocks take all of a row block's column tiles in turns, as with many rows; with few, each tile has a block of its own.
ONE_SHARE = {"PETX_CUDA_SHARES": "1"}
# Tiles of 128 x 32 n, as with many rows; four splits of the tokens.
WIDE = {n: {"PETX_CUDA_WIDE": str(n), "PETX_CUDA_SPLITS": "4"} for n in (2, 3)}


@dataclass(frozen=True)
class Trial:
    """A case that certifies: run twice, in guarded memory, against the rule.

    ``misaligned``: its tensors lie one element off the alignment of sixteen bytes. ``each_gradient``: each gradient is
    also asked for alone, and all but it. ``environment``: variables that are set meanwhile, for a path of the kernels
    that otherwise only large shapes take.
    """

    case: Case
    misaligned: bool = False
    each_gradient: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.case}{', misaligned' * self.misaligned}"
