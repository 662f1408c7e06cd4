"""The base of the autograd functions, and whether autograd will ask for a gradient."""

from collections.abc import Iterable
from typing import Any

import torch


def wants_gradient(leaves: Iterable[torch.Tensor | None]) -> bool:
    """Whether autograd will ask for the gradient of one of the tensors, or None, in ``leaves``."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in leaves)


class Differentiable(torch.autograd.Function):
    """Base of the autograd functions, which have ``forward(*inputs)`` and ``setup_context``, as torch.func needs them.

    For a class with ``setup_context`` torch inspects forward's signature at every ``apply``: about 40 µs, more than a
    small kernel takes. So an eager call goes through ``Eager``, the same function in the older form.
    """

    generate_vmap_rule = True
    Eager: Any

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()

        def forward(ctx: Any, *inputs: Any) -> Any:
            output = cls.forward(*inputs)
            cls.setup_context(ctx, inputs, output)
            return output

        members = {"forward": staticmethod(forward), "backward": staticmethod(cls.backward)}
        cls.Eager = type(cls.__name__, (torch.autograd.Function,), members)

    @classmethod
    def call(cls, leaves: Iterable[torch.Tensor | None], *inputs: Any) -> Any:
        """``cls(*inputs)``; ``leaves`` are the tensors, or None, that may need a gradient."""
        if torch._C._are_functorch_transforms_active():
            return cls.apply(*inputs)
        if wants_gradient(leaves):
            return (cls if torch.compiler.is_compiling() else cls.Eager).apply(*inputs)
        # Not `apply`: without a gradient torch.compile would take forward(*inputs) for forward(ctx, *inputs).
        return cls.forward(*inputs)
