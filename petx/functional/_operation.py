"""What the Python side of every operation shares, from the fast path to the shape functions for torch.compile.

A public function goes one of two ways. Fast path: eager, without gradients and autocast, the compiled operator is
called on the arguments as they are. Slow path: everything else, and what the fast path refused; it casts, makes
contiguous, and either runs the compiled operator under autograd or the readable reference.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from petx import ops
from petx.functional._autograd import Differentiable, dtypes_of

# What an argument that does not fit makes torch, the operator or Python raise.
ARGUMENT_ERRORS = (RuntimeError, AttributeError, TypeError, ValueError, LookupError)
NUMBERS = (float, int)  # the types of a number that need no further look; others are checked


class Operation:
    """The compiled operators ``petx::<stem>_fwd`` and ``petx::<stem>_bwd``.

    Args:
        stem: of the operators' names.
        leaves: the differentiable arguments, in the schemas' order; bit i of ``needs`` asks the backward for the
            gradient of leaf i.
        activations: those leaves, the first ones, that give the compute dtype; the others are cast to it. Their
            gradients come in it, and so do the others' whose bit of the backward's ``narrow`` is set; the rest comes in
            float32 (float64 for float64).
        constants: tensors without a gradient that follow the leaves in the schemas (masks, the seed).
        forward_only: number of last arguments of the forward that the backward does not have.
        wide: the last leaves if they are of the result's dtype, not of the activations': if the last one is given, the
            dtype that the kernels compute in, to which the others are cast.
        rank_dim: dimension of the tensor ``narrow`` below whose size is the bottleneck's rank.
        shapes: the forward's results for torch.compile, from its arguments by name.
        path: the environment variable that chooses what the forward leaves for the backward. An eager backward that
            finds another value in it than its forward did raises RuntimeError.

    Of a call its methods get ``first``, the tensor whose device decides, and ``narrow``, the one that has the rank.
    """

    def __init__(
        self,
        stem: str,
        leaves: Sequence[str],
        *,
        activations: Sequence[str] = (),
        constants: Sequence[str] = (),
        forward_only: int = 0,
        wide: Sequence[str] = (),
        rank_dim: int,
        shapes: Callable[[SimpleNamespace], Any],
        path: str | None = None,
    ) -> None:
        self.stem, self.leaves, self.activations = stem, tuple(leaves), tuple(activations)
        self.rank_dim = rank_dim
        self._function = _function_of(self, len(constants), forward_only, len(wide), path)
        ops.register(stem, shapes, self._gradient_shapes)

    def takes(self, first: torch.Tensor, narrow: Any) -> bool:
        """Whether a call runs compiled: on a GPU as the card's certificate says for its dtype, rows, width and rank."""
        if first.is_cpu:
            return ops.takes(self.stem, first)
        ranked = isinstance(narrow, torch.Tensor) and narrow.dim() > 0  # else a check will refuse it
        return ops.takes(self.stem, first, narrow.shape[self.rank_dim] if ranked else None)

    def validates(self, first: Any, narrow: Any) -> bool:
        """Whether a call reaches the compiled operator, which validates its arguments before it does anything.

        The Python checks, which say it in the user's words, then run only after a refusal: on a GPU they would take as
        long as the rest of the call.
        """
        if not isinstance(first, torch.Tensor) or not self.takes(first, narrow):
            return False
        # Transforms of torch.func and levels of forward-mode differentiation must see torch's own operations: a
        # compiled operator would lose a tangent without a word.
        transformed = forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
        return not (transformed or torch.compiler.is_compiling())

    def can_try_fast_path(self, first: Any, narrow: Any) -> bool:
        """Whether the operator may be tried on a call's arguments as they are.

        If it raises one of :data:`ARGUMENT_ERRORS`, the slow path converts or explains.
        """
        return (
            not torch.is_grad_enabled()
            and self.validates(first, narrow)
            and not torch.is_autocast_enabled("cpu" if first.is_cpu else "cuda")
        )

    def call_or_explain(
        self,
        first: Any,
        narrow: Any,
        run: Callable[..., Any],
        check: Callable[..., Any],
        arguments: tuple[Any, ...],
        *,
        check_first: bool = False,
    ) -> Any:
        """``run(*arguments)``; if that is refused, ``check(*arguments)`` says which argument does not fit.

        ``check_first`` if the operator may not see what is wrong.
        """
        if check_first or not self.validates(first, narrow):
            check(*arguments)
            return run(*arguments)
        try:
            return run(*arguments)
        except ARGUMENT_ERRORS:
            check(*arguments)
            raise

    def runs_reference(self, first: torch.Tensor, narrow: torch.Tensor) -> bool:
        """Whether the readable reference serves a call: no kernel for the device, or forward-mode derivatives, which
        the operators do not have."""
        return not self.takes(first, narrow) or forward_ad._current_level >= 0

    def differentiable(self, *inputs: Any) -> Any:
        """The forward operator under autograd, on all its arguments in the schema's order."""
        return self._function.call(inputs[: len(self.leaves)], *inputs)

    def _gradient_shapes(self, given: SimpleNamespace) -> tuple[torch.Tensor, ...]:
        leaves = [getattr(given, name) for name in self.leaves]
        first = leaves[0]
        wide = torch.promote_types(first.dtype, torch.float32)
        return tuple(
            first.new_empty(
                (0,) if leaf is None or not given.needs >> i & 1 else leaf.shape,
                dtype=first.dtype if name in self.activations or given.narrow >> i & 1 else wide,
            )
            for i, (name, leaf) in enumerate(zip(self.leaves, leaves, strict=True))
        )


def _function_of(
    operation: Operation, constants: int, forward_only: int, wide: int, path: str | None
) -> type[Differentiable]:
    """The autograd function of an operation whose results are one tensor and what it keeps for the backward."""
    leaves, activations = len(operation.leaves), len(operation.activations)
    tensors = leaves + constants
    forward_name, backward_name = f"{operation.stem}_fwd", f"{operation.stem}_bwd"

    class Function(Differentiable):
        LEAVES = slice(leaves)

        @staticmethod
        def prepare(inputs: tuple[Any, ...], copies: Any) -> tuple[Any, ...]:
            return (*_operands_of(inputs[:leaves], activations, wide), *inputs[leaves:])

        @staticmethod
        def forward(*inputs: Any) -> Any:
            operator = getattr(torch.ops.petx, forward_name)
            return operator(*_operands_of(inputs[:leaves], activations, wide), *inputs[leaves:])

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            kept = output[1:] if isinstance(output, tuple) else ()
            ctx.options, ctx.dtypes = inputs[tensors : len(inputs) - forward_only], dtypes_of(inputs[:leaves])
            ctx.path = _set_to(path)
            ctx.save_for_backward(*inputs[:tensors], *kept)
            if kept:
                ctx.mark_non_differentiable(*kept)
                ctx.set_materialize_grads(False)

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, dout: torch.Tensor | None, *_: None) -> tuple[torch.Tensor | None, ...]:
            needs = ctx.needs_input_grad
            if dout is None:
                return (None,) * len(needs)
            _check_path(backward_name, path, ctx.path)
            saved = ctx.saved_tensors
            grads = getattr(torch.ops.petx, backward_name)(
                dout.contiguous(),
                *_operands_of(saved[:leaves], activations, wide),
                *saved[leaves:],
                needed_bits(needs[:leaves]),
                narrow_bits(ctx.dtypes, saved[0].dtype),
                *ctx.options,
            )
            return (*as_leaves(grads, ctx.dtypes, needs), *(None,) * (len(needs) - leaves))

    Function.__name__ = Function.__qualname__ = "".join(part.capitalize() for part in operation.stem.split("_"))
    return Function


def _set_to(path: str | None) -> str | None:
    """What the environment says of the variable ``path``; None where it does not, and in what torch.compile traces."""
    return None if path is None or torch.compiler.is_compiling() else os.environ.get(path)


def _check_path(name: str, path: str | None, before: str | None) -> None:
    """Raise RuntimeError if the variable ``path`` is no longer as it was in the forward, ``before``: the backward
    ``name`` would take what the forward left for something else."""
    if path is None or torch.compiler.is_compiling():
        return
    now = _set_to(path)
    if now != before:
        was, got = ("unset" if value is None else repr(value) for value in (before, now))
        raise RuntimeError(f"{name}: {path} must be as it was in the forward, {was}, got {got}")


def _operands_of(leaves: Sequence[Any], activations: int, wide: int) -> list[torch.Tensor | None]:
    """An operation's leaves as its operator takes them: all but the activations cast."""
    dtype, end = leaves[0].dtype, len(leaves)
    if not wide or leaves[-1] is None:
        return [*leaves[:activations], *operands(leaves[activations:], dtype)]
    narrow, stream = leaves[activations : end - wide], leaves[end - wide :]
    return [
        *leaves[:activations],
        *operands(narrow, dtype),
        *operands(stream, torch.promote_types(dtype, torch.float32)),
    ]


def needed_bits(needs: Iterable[bool]) -> int:
    """``needs`` as the backward operators take it: bit i asks for the gradient of leaf i."""
    return sum(1 << i for i, needed in enumerate(needs) if needed)


def narrow_bits(dtypes: Iterable[torch.dtype | None], dtype: torch.dtype) -> int:
    """Which leaves' gradients the backward operators are to store in ``dtype``, the call's: those of that dtype."""
    return sum(1 << i for i, own in enumerate(dtypes) if own == dtype)


def as_leaves(
    grads: Sequence[torch.Tensor], dtypes: Sequence[torch.dtype | None], needs: Sequence[bool]
) -> list[torch.Tensor | None]:
    """The gradients in their leaves' ``dtypes``, None for those that nobody asked for."""
    return copied([grad if need else None for grad, need in zip(grads, needs, strict=False)], dtypes)


def autocasts(device: torch.device) -> bool:
    """Whether autocast is on for ``device``; on meta, of which torch does not take the question, it never is."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def autocast_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype that autocast asks for if it is on (float64 is left alone, as by torch's layers), else tensor's."""
    if autocasts(tensor.device) and tensor.dtype != torch.float64:
        return torch.get_autocast_dtype(tensor.device.type)
    return tensor.dtype


def cast(tensor: torch.Tensor | None, dtype: torch.dtype) -> Any:
    """``tensor`` in ``dtype``; what is not floating is left for the operator, or a check, to refuse."""
    if tensor is None or tensor.dtype == dtype or not tensor.is_floating_point():
        return tensor
    return tensor.to(dtype)


def operands(tensors: Iterable[torch.Tensor | None], dtype: torch.dtype) -> list[torch.Tensor | None]:
    """``tensors`` as an operator takes them: of ``dtype`` and contiguous; None stays None, and what is not floating is
    left for the operator to refuse."""
    given = list(tensors)
    return copied(given, [dtype if t is not None and t.is_floating_point() else None for t in given], contiguous=True)


def copied(
    tensors: Sequence[torch.Tensor | None], dtypes: Sequence[torch.dtype | None], *, contiguous: bool = False
) -> list[torch.Tensor | None]:
    """The tensors in those dtypes, as they are where the dtype is theirs, or None.

    Several copies are one launch on a GPU, where each alone would cost as much as a small kernel.
    """
    found: list[Any] = list(tensors)
    others = [
        i
        for i, (t, dtype) in enumerate(zip(found, dtypes, strict=False))
        if t is not None and dtype is not None and not (t.dtype == dtype and (t.is_contiguous() or not contiguous))
    ]
    if len(others) < 2 or torch.compiler.is_compiling() or is_vmapped(found[i] for i in others):
        for i in others:
            found[i] = found[i].to(dtypes[i]).contiguous()
        return found
    before = [found[i] for i in others]
    for i in others:
        found[i] = torch.empty_like(found[i], dtype=dtypes[i], memory_format=torch.contiguous_format)
    torch._foreach_copy_([found[i] for i in others], before)
    return found


def is_vmapped(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether torch.func's transforms or ``torch.autograd.grad(is_grads_batched=True)`` must see one operation each."""
    if torch.compiler.is_compiling():
        return False  # the compiler cannot trace the question
    batched = torch._C._functorch.is_legacy_batchedtensor
    return torch._C._are_functorch_transforms_active() or any(map(batched, tensors))


def grads_by(
    definition: Callable[..., Sequence[torch.Tensor]],
    leaves: Sequence[torch.Tensor | None],
    needs: Sequence[bool],
    douts: dict[int, torch.Tensor],
) -> list[torch.Tensor | None]:
    """Gradients of ``leaves`` by a readable definition, from those of its results by number.

    For gradients in a batch, where the backward operator takes a list of tensors: vmap has no rule for it.
    """
    wanted = [i for i, leaf in enumerate(leaves) if leaf is not None and needs[i]]

    def results(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = definition(*(given[wanted.index(i)] if i in wanted else leaf for i, leaf in enumerate(leaves)))
        return tuple(found[k] for k in douts)

    pull = torch.func.vjp(results, *(leaves[i] for i in wanted))[1]
    found = dict(zip(wanted, pull(tuple(douts.values())), strict=True))
    return [found.get(i) for i in range(len(leaves))]
