"""Stage 1: whether the kernels of an operation are right on a card, case by case."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from petx.certify.cases import CASES, Trial
from petx.certify.certificate import RIGHT, WRONG, Finding
from petx.certify.rule import judged, outputs_and_grads

GUARD = 4096  # bytes on each side of an input that no kernel may change
PATTERN = 0xA5

Tensors = dict[str, torch.Tensor]


def tried(stem: str, dtype: torch.dtype, device: str, say: Callable[[str], None] = lambda case: None) -> Finding:
    """What the shipped cases of operation ``stem`` find out about it in ``dtype``; ``say`` is told each before."""
    worst = None
    for trial in CASES[stem]:
        said, found = None, None
        say(str(trial))
        with _set(trial.environment):
            said, found = _said(trial, dtype, device)
        if said is not None:
            return Finding(WRONG, f"{trial.case.name}: {said}", len(CASES[stem]), found)
        if found and (worst is None or found["error"] / found["bound"] > worst["error"] / worst["bound"]):
            worst = {"case": trial.case.name} | found
    return Finding(RIGHT, None, len(CASES[stem]), worst)


@contextlib.contextmanager
def _set(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _said(trial: Trial, dtype: torch.dtype, device: str) -> tuple[str | None, dict[str, Any] | None]:
    """What is wrong with a trial, or None, and its result nearest to its bound."""
    case = trial.case
    plain = case.inputs(dtype, device=device)
    tensors, rooms = guarded(plain, offset=int(trial.misaligned))
    results = outputs_and_grads(case.run, tensors)
    said, worst = _changed(plain, tensors, rooms), None
    if said is None:
        said, worst = judged(results, case, plain)
    if said is None:
        again = outputs_and_grads(case.run, tensors)
        said = _other_bits(results, again, "in a second run")
    if said is None and trial.each_gradient:
        said = _gradients_alone(case, plain, results)
    return said, worst


def guarded(plain: Tensors, offset: int) -> tuple[Tensors, list[tuple[str, torch.Tensor, slice]]]:
    """Copies of the tensors inside rooms of a known pattern, ``offset`` elements off the alignment of sixteen bytes."""
    tensors, rooms = {}, []
    for name, tensor in plain.items():
        size, begin = tensor.numel() * tensor.element_size(), GUARD + offset * tensor.element_size()
        room = torch.full((begin + size + GUARD,), PATTERN, dtype=torch.uint8, device=tensor.device)
        view = room[begin : begin + size].view(tensor.dtype).view(tensor.shape)
        view.copy_(tensor.detach())
        tensors[name] = view.detach().requires_grad_(tensor.requires_grad)
        rooms.append((name, room, slice(begin, begin + size)))
    return tensors, rooms


def _changed(plain: Tensors, tensors: Tensors, rooms: list[tuple[str, torch.Tensor, slice]]) -> str | None:
    for name, tensor in tensors.items():
        if not torch.equal(tensor.detach(), plain[name].detach()):
            return f"the input {name} was changed"
    for name, room, inside in rooms:
        if not (bool((room[: inside.start] == PATTERN).all()) and bool((room[inside.stop :] == PATTERN).all())):
            return f"memory beside the input {name} was changed"
    return None


def _other_bits(results: dict[str, Any], again: dict[str, Any], when: str) -> str | None:
    for name, value in results.items():
        other = again[name]
        if value is not None and other is not None and not torch.equal(value, other):
            return f"{name} has other bits {when}"
    return None


def _gradients_alone(case: Any, plain: Tensors, results: dict[str, Any]) -> str | None:
    """Each gradient asked for alone, and all but it: the same bits as all together."""
    names = [name for name in plain if results[name] is not None]
    for wanted in _subsets(names):
        tensors = {name: tensor.detach().requires_grad_(name in wanted) for name, tensor in plain.items()}
        alone = outputs_and_grads(case.run, tensors)
        said = _other_bits(alone, results, f"if gradients are asked for {', '.join(sorted(wanted))} alone")
        if said is not None:
            return said
    return None


def _subsets(names: list[str]) -> Iterator[set[str]]:
    for name in names:
        yield {name}
    for name in names if len(names) > 2 else ():
        yield set(names) - {name}
