"""The matrix products of an operation alone, through torch, into memory that is there already.

They compute nothing of use and are no peer: they are the time that no form with the same products can go below. A
product is ("out", "a", "b") for out = a b, an operand's name with ".T" for its transpose; ``x[k]`` is the k-th part of
a tensor of three dimensions, ``dy0``, ``dy1``, ... are the outgoing gradients. What only has the right shape is taken
in place of what an element-wise step would have made.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from petx.bench.case import PRODUCTS, Arm, BenchCase, Built, Problem, Tensors, Unavailable

Product = tuple[str, str, str]


def alone(
    forward: Sequence[Product],
    backward: Sequence[Product],
    outputs: Sequence[str],
    shape: Callable[[Tensors], Sequence[int]] | None = None,
) -> Arm:
    """The arm that runs the products ``forward``, of which ``outputs`` are the results, and ``backward`` after them.

    ``shape(activations)`` is that of an output, where it is no matrix.
    """

    def build(case: BenchCase, problem: Problem) -> Built:
        fixed = _matrices(problem.parameters | problem.frozen)
        if case.dtype.itemsize < 4 and next(iter(fixed.values())).device.type == "cpu":
            raise Unavailable("measured in float32 on a CPU, where torch's 16-bit products may be far slower")
        made: Tensors = {}  # results by name
        given: Tensors = {}  # what the step was called with

        def operand(name: str) -> torch.Tensor:
            plain = name.removesuffix(".T")
            found = next(place[plain] for place in (given, fixed, made) if plain in place)
            return found if plain == name else found.T

        def multiply(products: Sequence[Product]) -> None:
            for name, a, b in products:
                left, right = operand(a), operand(b)
                if name not in made:
                    made[name] = left.new_empty(left.shape[0], right.shape[1])
                torch.mm(left, right, out=made[name])

        def run_forward(activations: Tensors) -> tuple[torch.Tensor, ...]:
            given.update(_matrices(activations))
            multiply(forward)
            results = [made[name].detach() for name in outputs]
            return tuple(y.view(shape(activations)) if shape else y for y in results)

        def run_backward(gradients: Sequence[torch.Tensor]) -> None:
            pairs = zip(outputs, gradients, strict=True)
            given.update({f"dy{k}": dy.reshape(made[name].shape) for k, (name, dy) in enumerate(pairs)})
            multiply(backward)

        leaves = list(problem.parameters.values())
        return lambda activations: _Products.apply(run_forward, run_backward, activations, *leaves), leaves

    return Arm(PRODUCTS, build)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        run_forward: Callable[[Tensors], tuple[torch.Tensor, ...]],
        run_backward: Callable[[Sequence[torch.Tensor]], None],
        activations: Tensors,
        *leaves: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        ctx.run_backward, ctx.inputs = run_backward, 3 + len(leaves)
        ctx.set_materialize_grads(False)
        return run_forward(activations)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, ...]:
        ctx.run_backward(gradients)
        return (None,) * ctx.inputs


def _matrices(tensors: dict[str, Any]) -> Tensors:
    """By name: matrices as they are, others as rows of their last extent, and their parts as ``name[k]``."""
    found = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        if tensor.dim() >= 2:
            found[name] = tensor.flatten(0, -2)
        if tensor.dim() == 3:
            found |= {f"{name}[{k}]": part for k, part in enumerate(tensor)}
    return found
