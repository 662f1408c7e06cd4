"""What is measured: a case is one problem in one dtype, solved by several arms, petx's own and its peers."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from petx.errors import UserError

PETX = "petx"
FROZEN, PRODUCTS = FLOORS = ("frozen model", "products alone")  # arms that do less than the function: no peers
DIRECTIONS = ("fwd", "bwd", "fwd+bwd")


class Unavailable(Exception):
    """An arm or case that cannot run here; the message says why, and the report shows it."""


@dataclass
class Problem:
    """The tensors of a case on a device.

    ``parameters`` get gradients, ``frozen`` do not; ``fresh()`` makes another set of activations with the same shapes,
    those that need a gradient with ``requires_grad``.
    """

    parameters: dict
    frozen: dict
    fresh: Callable


@dataclass(frozen=True)
class Arm:
    """One way to solve a case. ``build(case, problem)`` gives (forward, leaves): ``forward(activations)`` returns a
    tuple of tensors, ``leaves`` are the parameters whose gradients a step takes."""

    name: str
    build: Callable


@dataclass(frozen=True)
class BenchCase:
    """``make(case, device)`` gives the :class:`Problem`; ``work`` the least FLOPs and bytes of each direction.

    ``whole``: a step is one thing (forward, backward and optimizer), timed as such under ``"step"``.
    """

    operation: str
    name: str
    dtype: torch.dtype
    sizes: dict
    make: Callable
    arms: tuple
    options: dict = field(default_factory=dict)
    work: dict = field(default_factory=dict)
    quick: bool = False
    whole: bool = False

    @property
    def frozen_products(self):
        """Whether products of a frozen model, torch's own in every arm, are part of the case."""
        return not self.work or bool(self.sizes.get("projections"))

    @property
    def label(self):
        return f"{self.operation}/{self.name}"

    def __str__(self):
        return f"{self.label} {dtype_name(self.dtype)}"


def dtype_name(dtype):
    return str(dtype).removeprefix("torch.")


def plain(name, function):
    """The arm of a function of all the case's tensors, by name, and its options."""

    def build(case, problem):
        fixed = problem.parameters | problem.frozen
        return lambda activations: function(activations | fixed, **case.options), list(problem.parameters.values())

    return Arm(name, build)


def compiled(name, function, mode="default"):
    """The arm of ``torch.compile(function)``; graphs only where there is a GPU to record them."""

    def build(case, problem):
        device = next(iter({**problem.parameters, **problem.frozen}.values())).device.type
        if mode == "reduce-overhead" and device != "cuda":
            raise Unavailable("CUDA graphs need a GPU")
        torch._dynamo.reset()  # else the shapes of earlier cases count against dynamo's limit of recompilations
        fixed, options = problem.parameters | problem.frozen, case.options
        step = torch.compile(lambda tensors: function(tensors, **options), dynamic=False, fullgraph=True, mode=mode)

        def forward(activations):
            if mode == "reduce-overhead":
                torch.compiler.cudagraph_mark_step_begin()
            return step(activations | fixed)

        return forward, list(problem.parameters.values())

    return Arm(name, build)


def unavailable(name, reason):
    """A peer that does not apply to a case, kept in its table with the reason."""

    def build(case, problem):
        raise Unavailable(reason)

    return Arm(name, build)


def select(cases, wanted=None, peers=None):
    """The cases whose operation or ``operation/name`` is in ``wanted``, with petx and the arms named in ``peers``.

    Raises UserError for a name that nothing has, listing those that there are.
    """
    cases = list(cases)
    if wanted:
        known = list(dict.fromkeys([c.operation for c in cases] + [c.label for c in cases]))
        _refuse_unknown("case", wanted, known)
        cases = [case for case in cases if case.operation in wanted or case.label in wanted]
    if peers is not None:
        known = list(dict.fromkeys(arm.name for case in cases for arm in case.arms if arm.name != PETX))
        _refuse_unknown("peer", peers, known)
        kept = {PETX, *peers}
        cases = [
            BenchCase(**{**vars(case), "arms": tuple(arm for arm in case.arms if arm.name in kept)}) for case in cases
        ]
    return cases


def _refuse_unknown(what, wanted, known):
    unknown = [name for name in wanted if name not in known]
    if unknown:
        names = ", ".join(map(repr, unknown))
        raise UserError(f"unknown {what} {names}; there are: {', '.join(known)}")
