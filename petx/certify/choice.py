"""Which path a call on a GPU takes: the kernel if the card's certificate says that it is right and not slower.

A choice is made once in a process for a card, and for a shape class of an operation, and stays. ``PETX_CUDA_KERNELS=1``
pins the kernels, 0 the reference.
"""

import math
import os
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import is_fake

from petx.certify import cards as machine
from petx.certify.certificate import RIGHT, WRONG, Certificate, Finding
from petx.errors import UserError

SLOWER = 1.05  # of eager torch's time, from which a kernel is not chosen

# (operation, device, dtype, bits of the number of rows, width, rank) -> whether the kernel is taken
_answers: dict[tuple[Any, ...], bool] = {}
_of: dict[int, "Choices"] = {}  # device -> its choices, once made
_told: set[str] = set()


class CertificateWarning(UserWarning):
    """Kernels are not used on a card, and why."""


@dataclass
class Choices:
    """What holds for one card. ``all``: the kernels of every operation are taken (True) or none (False), for the
    reason ``why``; None: as the certificate says."""

    all: bool | None
    why: str = ""
    certificate: Certificate | None = None
    card: machine.Card | None = None
    settled: bool = True  # false: asked again at the next use
    ignored: str = ""  # a certificate that is none
    findings: dict[str, dict[str, Finding]] = field(default_factory=dict)

    def finding(self, stem: str, dtype: torch.dtype) -> Finding | None:
        return self.findings.get(stem, {}).get(dtype_name(dtype))

    def takes(self, stem: str, dtype: torch.dtype, rows: float, width: int, rank: int | None) -> bool:
        if self.all is not None:
            return self.all
        found = self.finding(stem, dtype)
        return found is not None and found.verdict == RIGHT and not slower(found.times, rows, width, rank)


def takes(stem: str, tensor: torch.Tensor, rank: int | None = None) -> bool:
    """Whether a call of operation ``stem`` takes the CUDA kernel. ``tensor`` is its first, on a GPU, in the call's
    dtype; ``rank`` is the bottleneck's, None if it is not known: then over all that were timed."""
    if torch.compiler.is_compiling():
        return _when_compiling(stem, tensor.get_device(), tensor.dtype)
    shape = tensor.shape
    width = shape[-1] if shape else 1
    rows = tensor.numel() // width if width else 0
    key = (stem, tensor.get_device(), tensor.dtype, rows.bit_length(), width, rank)
    found = _answers.get(key)
    return _answer(key, is_fake(tensor)) if found is None else found


def _answer(key: tuple[Any, ...], fake: bool) -> bool:
    stem, device, dtype, bits, width, rank = key
    choices = of(device, fake)
    # The middle of the numbers with so many bits.
    taken = choices.takes(stem, dtype, 0.75 * 2**bits, width, rank)
    if choices.settled:
        _answers[key] = taken
    return taken


def _when_compiling(stem: str, device: int, dtype: torch.dtype) -> bool:
    """The choice inside torch.compile, where sizes may be symbols: over all shapes that were timed."""
    choices = of(device)
    taken = choices.takes(stem, dtype, math.nan, 0, None)
    if choices.settled:
        _answers[stem, device, dtype, None, None, None] = taken
    return taken


# What torch.compiler.assume_constant_result sets, which would load all of torch's compiler.
_when_compiling._dynamo_marked_constant = True  # type: ignore[attr-defined]


def slower(times: list[list[float]], rows: float, width: int, rank: int | None) -> bool:
    """Whether petx took longer than eager torch at the timed shape nearest to this one, by ratios of sizes.

    Without ``rank``, over all ranks at the nearest rows and width; without ``rows`` (NaN), over all shapes.
    """
    if not times:
        return False

    def off(point: list[float]) -> float:
        sizes = [(point[0], rows), (point[1], width)] + ([(point[2], rank)] if rank else [])
        return sum(abs(math.log2(max(size, 1)) - math.log2(max(wanted, 1))) for size, wanted in sizes)

    if not math.isnan(rows):
        nearest = min(map(off, times))
        times = [point for point in times if off(point) <= nearest + 1e-9]
    return sum(point[3] for point in times) > SLOWER * sum(point[4] for point in times)


def of(device: int, fake: bool = False) -> Choices:
    """The choices of a card, which its first use makes; ``fake`` tensors have none to be certified."""
    device = max(device, 0)  # a fake tensor's may be none
    found = _of.get(device)
    if found is None:
        found = _made(device, fake)
        if found.settled:
            _of[device] = found
    return found


def forget(device: int | None = None) -> None:
    """Make the choices again at the next use: for :func:`petx.certify.certify`, and for tests."""
    for known in [device] if device is not None else list(_of):
        _of.pop(known, None)
    for key in [key for key in _answers if device is None or key[1] == device]:
        del _answers[key]


def pinned() -> bool | None:
    """What ``PETX_CUDA_KERNELS`` says: True, False, or None if it is not set."""
    value = os.environ.get("PETX_CUDA_KERNELS", "")
    if value not in ("", "0", "1"):
        raise UserError(f"PETX_CUDA_KERNELS must be 0 or 1, got {value!r}")
    return {"": None, "0": False, "1": True}[value]


def _made(device: int, fake: bool) -> Choices:
    from petx.certify import first_use

    choices = first_use.choices(device, fake)
    _warn(choices)
    return choices


def of_certificate(certificate: Certificate, card: machine.Card | None) -> Choices:
    return Choices(None, "", certificate, card, findings=certificate.findings)


def _warn(choices: Choices) -> None:
    """One warning per card that names what is not used, why, and what to do."""
    if choices.all is not None:
        if choices.all or pinned() is False:
            return
        text = f"the CUDA kernels are not used on {_name(choices)}: {choices.why}. torch's own operations run instead"
    else:
        wrong = [
            f"{stem} in {name} ({found.said})"
            for stem, by in choices.findings.items()
            for name, found in by.items()
            if found.verdict == WRONG
        ]
        if not wrong:
            return
        text = (
            f"CUDA kernels are wrong on {_name(choices)}, and not used: {'; '.join(wrong)}. torch's own operations run "
            "instead. Please report this with the output of `petx info`; `petx certify` tries again"
        )
    warn(text)


def warn(text: str) -> None:
    """A warning that each process gives once."""
    if text not in _told:
        _told.add(text)
        warnings.warn(f"petx: {text}", CertificateWarning, stacklevel=2)


def _name(choices: Choices) -> str:
    return str(choices.card) if choices.card else "this GPU"


def takes_all(stem: str) -> bool:
    """Whether the kernels of operation ``stem`` are right on the current card in every dtype."""
    choices = of(_current())
    if choices.all is not None:
        return choices.all
    by = choices.findings.get(stem, {})
    names = ("float32", "float64", "bfloat16", "float16")
    return all(name in by and by[name].verdict == RIGHT for name in names)


def _current() -> int:
    return machine.cards.current() if machine.cards.count() else 0


def why_not(stem: str, device: int | None = None, dtype: torch.dtype | None = None) -> str | None:
    """Why not every call of operation ``stem`` may take the kernel on a card (the current one) in ``dtype`` (None: in
    any), or None. Certifies nothing."""
    from petx.certify import lookup

    device = _current() if device is None else device
    choices = _of.get(device) or lookup.known(device)
    if choices.all is not None:
        return None if choices.all else choices.why
    by = choices.findings.get(stem, {})
    if dtype is not None:
        by = {name: found for name, found in by.items() if name == dtype_name(dtype)}
    if not by:
        return "the card's certificate does not have it; `petx certify` makes a new one"
    wrong = [f"in {name}: {found.said}" for name, found in by.items() if found.verdict == WRONG]
    if wrong:
        right = [name for name, found in by.items() if found.verdict == RIGHT]
        others = f"; it is right in {', '.join(right)}, where the kernel runs" if right else ""
        return f"it is wrong on this card {'; '.join(wrong)}{others}"
    timed = [point for found in by.values() for point in found.times]
    if all(found.times for found in by.values()) and all(point[3] > SLOWER * point[4] for point in timed):
        return "it is slower than torch's own operations at every shape that was timed on this card"
    return None


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
