"""The base of the autograd functions, and whether autograd will ask for a gradient."""

from collections.abc import Iterable
from typing import Any

import torch


def wants_gradient(leaves: Iterable[torch.Tensor | None]) -> bool:
    """Whether autograd will ask for the gradient of one of the tensors, or None, in ``leaves``."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in leaves)


def dtypes_of(leaves: Iterable[torch.Tensor | None]) -> list[torch.dtype | None]:
    """The leaves' dtypes, in which their gradients come back."""
    return [None if leaf is None else leaf.dtype for leaf in leaves]


class Differentiable(torch.autograd.Function):
    """Base of the autograd functions, which have ``forward(*inputs)`` and ``setup_context``, as torch.func needs them.

    ``LEAVES`` are the places of the differentiable inputs whose gradients the operator computes, and ``setup_context``
    sets ``ctx.dtypes`` to their dtypes. ``prepare(inputs, copies)`` gives the inputs as the operator takes them;
    ``copies`` are casts that the caller has made already, or None. An eager call keeps these for the backward, so that
    nothing is cast twice.

    For a class with ``setup_context`` torch inspects forward's signature at every ``apply``: about 40 µs, more than a
    small kernel takes. So an eager call goes through ``Eager``, the same function in the older form.
    """

    generate_vmap_rule = True
    LEAVES: slice
    Eager: Any

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()

        def forward(ctx: Any, *inputs: Any) -> Any:
            *own, copies = inputs
            given = cls.prepare(tuple(own), copies)
            output = cls.forward(*given)
            cls.setup_context(ctx, given, output)
            ctx.dtypes = dtypes_of(own[cls.LEAVES])
            return output

        def backward(ctx: Any, *douts: Any) -> Any:
            return (*cls.backward(ctx, *douts), None)

        members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        cls.Eager = type(cls.__name__, (torch.autograd.Function,), members)

    @staticmethod
    def prepare(inputs: tuple[Any, ...], copies: Any) -> tuple[Any, ...]:
        return inputs

    @classmethod
    def call(cls, leaves: Iterable[torch.Tensor | None], *inputs: Any, copies: Any = None) -> Any:
        """``cls(*inputs)``; ``leaves`` are the tensors, or None, that may need a gradient."""
        if torch._C._are_functorch_transforms_active():
            return cls.apply(*inputs)
        if wants_gradient(leaves):
            return cls.apply(*inputs) if torch.compiler.is_compiling() else cls.Eager.apply(*inputs, copies)
        # Not `apply`: without a gradient torch.compile would take forward(*inputs) for forward(ctx, *inputs).
        return cls.forward(*inputs)
