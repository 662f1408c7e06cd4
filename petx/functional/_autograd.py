"""How the public functions reach their autograd functions: by the shortest way that a call allows."""

import torch

from petx import ops

# What an argument that does not fit makes torch, the operator or Python raise.
MISFITS = (RuntimeError, AttributeError, TypeError, LookupError)


def operator_checks(stem, tensor):
    """Whether a call goes straight to a compiled operator, which checks its arguments before it does anything.

    The Python checks, which say it in the user's words, then run only where something was refused: on a GPU they would
    take as long as the rest of the call.
    """
    if not isinstance(tensor, torch.Tensor) or not ops.takes(stem, tensor):
        return False
    return not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())


def straight(stem, tensor):
    """Whether the operator may be tried on a call's tensors as they are: eagerly, without gradients and autocast.

    What it refuses then goes the long way, which converts and checks.
    """
    return (
        not torch.is_grad_enabled()
        and operator_checks(stem, tensor)
        and not torch.is_autocast_enabled("cpu" if tensor.is_cpu else "cuda")
    )


def wants_gradient(leaves):
    """Whether autograd will ask for the gradient of one of the tensors, or None, in ``leaves``."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in leaves)


def guarded(run, check, arguments, *more):
    """``run(*arguments, *more)``; where that refuses, ``check(*arguments)`` says what does not fit."""
    try:
        return run(*arguments, *more)
    except MISFITS:
        check(*arguments)
        raise


class Differentiable(torch.autograd.Function):
    """Base of the autograd functions, which have ``forward(*inputs)`` and ``setup_context``, as torch.func needs them.

    For a class with ``setup_context`` torch inspects forward's signature at every ``apply``: about 40 µs, more than a
    small kernel takes. So an eager call goes through ``Eager``, the same function in the older form.
    """

    generate_vmap_rule = True

    def __init_subclass__(cls):
        super().__init_subclass__()

        def forward(ctx, *inputs):
            output = cls.forward(*inputs)
            cls.setup_context(ctx, inputs, output)
            return output

        members = {"forward": staticmethod(forward), "backward": staticmethod(cls.backward)}
        cls.Eager = type(cls.__name__, (torch.autograd.Function,), members)

    @classmethod
    def call(cls, leaves, *inputs):
        """``cls(*inputs)``; ``leaves`` are the tensors, or None, that may need a gradient."""
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return cls.apply(*inputs)
        if wants_gradient(leaves):
            return cls.Eager.apply(*inputs)
        return cls.forward(*inputs)
