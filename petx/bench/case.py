"""What is measured: a case is one problem in one dtype, solved by several arms, petx's own and its peers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from petx.errors import UserError

PETX = "petx"
FROZEN, PRODUCTS = FLOORS = ("frozen model", "products alone")  # arms that do less than the function: no peers
DIRECTIONS = ("fwd", "bwd", "fwd+bwd")
DTYPES = (torch.float32, torch.bfloat16)  # those that everything is measured in

Tensors = dict[str, torch.Tensor]
Function = Callable[..., tuple[torch.Tensor, ...]]  # of all the case's tensors by name, and its options as keywords
Form = Callable[[Tensors], tuple[torch.Tensor, ...]]  # of the activations
Built = tuple[Form, Sequence[torch.Tensor]]  # a form, and the parameters whose gradients a step takes
Device = torch.device | str


class Unavailable(Exception):
    """An arm or case that cannot run here; the message says why, and the report shows it."""


@dataclass
class Problem:
    """The tensors of a case on a device.

    ``parameters`` get gradients, ``frozen`` do not; ``fresh()`` makes another set of activations with the same shapes,
    those that need a gradient with ``requires_grad``.
    """

    parameters: Tensors
    frozen: dict[str, Any]
    fresh: Callable[[], Tensors]


@dataclass(frozen=True)
class Arm:
    """One way to solve a case. ``build(case, problem)`` gives (forward, leaves): ``forward(activations)`` returns a
    tuple of tensors, ``leaves`` are the parameters whose gradients a step takes."""

    name: str
    build: Callable[["BenchCase", Problem], Built]


@dataclass(frozen=True)
class BenchCase:
    """``make(case, device)`` gives the :class:`Problem`; ``work`` the least FLOPs and bytes of each direction.

    ``whole``: a step is one thing (forward, backward and optimizer), timed as such under ``"step"``.
    """

    operation: str
    name: str
    dtype: torch.dtype
    sizes: dict[str, Any]
    make: Callable[["BenchCase", Device], Problem]
    arms: tuple[Arm, ...]
    options: dict[str, Any] = field(default_factory=dict)
    work: dict[str, tuple[int, int]] = field(default_factory=dict)
    quick: bool = False
    whole: bool = False

    @property
    def frozen_products(self) -> bool:
        """Whether products of a frozen model, torch's own in every arm, are part of the case."""
        return not self.work or bool(self.sizes.get("projections"))

    @property
    def label(self) -> str:
        return f"{self.operation}/{self.name}"

    def __str__(self) -> str:
        return f"{self.label} {dtype_name(self.dtype)}"


Sweep = tuple[str, list[BenchCase]]  # the size that grows, by its name in ``sizes``, and the cases


@dataclass(frozen=True)
class Shapes:
    """What an operation is asked for: its cases in ``dtype``, for a GPU or a CPU.

    ``main_only``: the main cases and no others. ``quick`` marks the main cases, ``options`` go to every case.
    """

    dtype: torch.dtype
    gpu: bool
    main_only: bool
    quick: bool
    options: dict[str, Any]

    def tokens(self, published: int, cpu_divisor: int = 1) -> int:
        """The published batch's tokens, on a CPU divided."""
        return published if self.gpu else published // cpu_divisor


def problem(
    case: BenchCase,
    device: Device,
    parameters: Mapping[str, tuple[int, ...]],
    activations: Mapping[str, tuple[int, ...]],
    frozen: Mapping[str, tuple[int, ...]] | None = None,
    gradients: Iterable[str] = (),
    wide: Iterable[str] = (),
    seed: int = 0,
) -> Problem:
    """Tensors from shapes: activations of about 1, parameters a tenth of it; ``gradients`` name the activations that
    need one, ``wide`` the tensors in float32 whatever the case's dtype."""
    generator = torch.Generator(device).manual_seed(seed)

    def draw(name: str, shape: tuple[int, ...], scale: float) -> torch.Tensor:
        value = torch.randn(shape, generator=generator, device=device).mul_(scale)
        return value if name in wide else value.to(case.dtype)

    def fresh() -> Tensors:
        return {n: draw(n, s, 1.0).requires_grad_(n in gradients) for n, s in activations.items()}

    values = {n: draw(n, s, 0.1) for n, s in parameters.items()}
    values = {n: (t.abs() if n == "threshold" else t).requires_grad_() for n, t in values.items()}
    return Problem(values, {n: draw(n, s, 0.1) for n, s in (frozen or {}).items()}, fresh)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def plain(name: str, function: Function) -> Arm:
    """The arm of a function of all the case's tensors, by name, and its options."""

    def build(case: BenchCase, problem: Problem) -> Built:
        fixed = problem.parameters | problem.frozen
        return lambda activations: function(activations | fixed, **case.options), list(problem.parameters.values())

    return Arm(name, build)


def compiled(name: str, function: Function, mode: str = "default") -> Arm:
    """The arm of ``torch.compile(function)``; graphs only if there is a GPU to record them."""

    def build(case: BenchCase, problem: Problem) -> Built:
        device = next(iter({**problem.parameters, **problem.frozen}.values())).device.type
        if mode == "reduce-overhead" and device != "cuda":
            raise Unavailable("CUDA graphs need a GPU")
        torch._dynamo.reset()  # else the shapes of earlier cases count against dynamo's limit of recompilations
        fixed, options = problem.parameters | problem.frozen, case.options
        step = torch.compile(lambda tensors: function(tensors, **options), dynamic=False, fullgraph=True, mode=mode)

        def forward(activations: Tensors) -> tuple[torch.Tensor, ...]:
            if mode == "reduce-overhead":
                torch.compiler.cudagraph_mark_step_begin()
            return step(activations | fixed)

        return forward, list(problem.parameters.values())

    return Arm(name, build)


def unavailable(name: str, reason: str) -> Arm:
    """A peer that does not apply to a case, kept in its table with the reason."""

    def build(case: BenchCase, problem: Problem) -> Built:
        raise Unavailable(reason)

    return Arm(name, build)


def select(
    cases: Iterable[BenchCase], wanted: Iterable[str] | None = None, peers: Iterable[str] | None = None
) -> list[BenchCase]:
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


def _refuse_unknown(what: str, wanted: Iterable[str], known: list[str]) -> None:
    unknown = [name for name in wanted if name not in known]
    if unknown:
        names = ", ".join(map(repr, unknown))
        raise UserError(f"unknown {what} {names}; there are: {', '.join(known)}")
