"""What eager torch and inductor would take for the same function, modelled from its operators.

The best eager peer's operators are recorded with tensors that have no data. Eager runs each by itself. For inductor,
the operators between two products are taken for one kernel, which reads what is not made inside it and writes what is
used outside. Both are charged for their kernels alone: the processor that launches them is taken to keep up.
"""

from dataclasses import dataclass, field

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from petx.bench.case import BenchCase
from petx.bench.peers import BEST
from tests.emulator.cost import model

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
# These move no bytes; a GPU draws dropout's mask in the kernel that multiplies by it, and so do the last two.
NOTHING = {"detach", "empty", "empty_like", "empty_strided", "_unsafe_view", "lift_fresh", "bernoulli_", "div_"}


@dataclass
class Operator:
    name: str
    reads: dict[int, int]  # number of a memory -> bytes
    writes: dict[int, int]
    flops: int = 0
    plain: bool = False  # a product of float32


@dataclass(eq=False)
class Recorder(TorchDispatchMode):
    """Every operator that moves bytes."""

    operators: list[Operator] = field(default_factory=list)
    kept: list = field(default_factory=list)  # so that no memory's number is given twice

    def __post_init__(self):
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.name().partition("::")[2].partition(".")[0]
        inputs, outputs = (
            [t for t in tree_leaves(found) if isinstance(t, torch.Tensor)] for found in ((args, kwargs), result)
        )
        self.kept += inputs + outputs
        if outputs and not func.is_view and name not in NOTHING:
            plain = outputs[0].dtype == torch.float32
            self.operators.append(Operator(name, sizes(inputs), sizes(outputs), flops(name, inputs), plain))
        return result


def sizes(tensors: list[torch.Tensor]) -> dict[int, int]:
    # An expanded tensor is read from the few values it has.
    return {t.untyped_storage()._cdata: min(t.nbytes, t.untyped_storage().nbytes()) for t in tensors}


def flops(name: str, inputs: list[torch.Tensor]) -> int:
    if name not in PRODUCTS:
        return 0
    a, b = inputs[-2:]
    return 2 * a.numel() * b.shape[-1]


def recorded(case: BenchCase) -> dict[str, list[Operator]]:
    """Direction -> operators of the best eager peer."""
    [arm] = [arm for arm in case.arms if arm.name == BEST]
    with FakeTensorMode():
        problem = case.make(case, "cpu")
        forward, leaves = arm.build(case, problem)
        activations = problem.fresh()
        leaves = [*leaves, *(t for t in activations.values() if t.requires_grad)]
        with Recorder() as recorder:
            results = [y for y in forward(activations) if y.requires_grad]
        found = {"fwd": recorder.operators}
        weights = [torch.ones_like(y) for y in results]
        with Recorder() as recorder:
            torch.autograd.grad(results, leaves, weights, allow_unused=True)
        found["bwd"] = recorder.operators
    return found


def fused(operators: list[Operator]) -> list[Operator]:
    """Operators as inductor would run them."""
    kernels: list[list[Operator]] = []
    for operator in operators:
        if operator.name in PRODUCTS or not kernels or kernels[-1][-1].name in PRODUCTS:
            kernels.append([])
        kernels[-1].append(operator)
    found = []
    for number, kernel in enumerate(kernels):
        later = {memory for other in kernels[number + 1 :] for operator in other for memory in operator.reads}
        made = {memory: size for operator in kernel for memory, size in operator.writes.items()}
        read = {memory: size for operator in kernel for memory, size in operator.reads.items() if memory not in made}
        last = set(kernel[-1].writes)
        written = {memory: size for memory, size in made.items() if memory in later or memory in last}
        found.append(Operator(kernel[-1].name, read, written, kernel[-1].flops, kernel[-1].plain))
    return found


def time(operators: list[Operator]) -> float:
    """Seconds of the operators one after another."""
    return sum(operator_time(operator) for operator in operators)


def operator_time(operator: Operator) -> float:
    bytes_ = sum(operator.reads.values()) + sum(operator.writes.values())
    if operator.name in PRODUCTS:
        return model.product_seconds(bytes_, operator.flops, operator.plain)
    return bytes_ / (model.ELEMENTWISE * model.DRAM) + model.LAUNCH
