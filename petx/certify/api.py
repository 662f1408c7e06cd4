"""Certifying a card: runs the kernels in a process of their own and keeps what was found."""

import time
from collections.abc import Iterable
from pathlib import Path

import torch

from petx._checks import check_flag
from petx.certify import cards as machine
from petx.certify import certificate as file
from petx.certify import process
from petx.certify.certificate import Certificate
from petx.certify.choice import Choices, dtype_name, forget, of_certificate, warn
from petx.errors import UserError

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def certify(
    device: int | str | torch.device = 0, *, operations: Iterable[str] | None = None, timed: bool = True
) -> Certificate:
    """Certify a card now: all kernels against float64 on it, and their times beside eager torch's.

    The certificate is kept in the cache folder and used from the next call on, in this process too. A certificate of
    some ``operations`` only, or without times (``timed=False``), is a check, and neither kept nor used.

    Raises UserError for a device or an operation that does not exist, and for a card that the library cannot run on.
    """
    wanted = stems(operations)
    check_flag("certify", timed=timed)
    card = card_of(device)
    if operations is None and timed:
        forget(card.index)
        found = made(card)
        if found.certificate is None:
            raise UserError(f"{card} could not be certified: {found.why}")
        return found.certificate
    return examined(card, wanted, timed)[0]


def card_of(device: int | str | torch.device) -> machine.Card:
    """The card of this name; UserError if there is none, or the library cannot run on it."""
    from petx import ops

    cards = machine.cards
    if isinstance(device, str) and device.isdigit():
        device = int(device)
    if isinstance(device, bool) or not isinstance(device, int | str | torch.device):
        raise UserError(f"device must be a GPU such as cuda:0, got {device!r}")
    if not isinstance(device, int):
        try:
            device = torch.device(device)
        except RuntimeError:
            raise UserError(f"device must be a GPU such as cuda:0, got {device!r}") from None
        if device.type != "cuda":
            raise UserError(f"device must be a GPU such as cuda:0, got {str(device)!r}")
        device = 0 if device.index is None else device.index
    count = cards.count()
    if not 0 <= device < count:
        there = f"there are {count}, from cuda:0" if count else "no GPU is visible"
        raise UserError(f"device cuda:{device} does not exist: {there}")
    if ops._C is None:
        raise UserError(f"the compiled library is not in use: {ops.why_absent('mode_update', 'cuda')}")
    card = cards.card(device)
    obstacle = machine.unusable(card.capability, ops._C.build_info())
    if obstacle:
        raise UserError(f"{card} cannot be certified: {obstacle}")
    return card


def stems(operations: Iterable[str] | None) -> list[str]:
    """The operations to certify; UserError for a name that does not exist."""
    from petx.certify.cases import CASES

    if operations is None:
        return list(CASES)
    if isinstance(operations, str) or not isinstance(operations, Iterable):
        raise UserError(f"operations must be several names, of {', '.join(CASES)}; got {operations!r}")
    wanted = list(operations)
    for name in wanted:
        if not isinstance(name, str) or name not in CASES:
            raise UserError(f"operations: there is no {name!r}; there are {', '.join(CASES)}")
    return wanted


def examined(card: machine.Card, wanted: list[str], timed: bool) -> tuple[Certificate, str | None]:
    """A certificate of what a process found out on ``card``, kept nowhere, and why it is not complete, or None."""
    work = [(stem, dtype_name(dtype)) for dtype in DTYPES for stem in wanted]
    start = time.monotonic()
    findings, unknown = process.examined(machine.cards, card, work, timed=timed)
    seconds = round(time.monotonic() - start, 1)
    made_at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    return Certificate(file.facts_of(card), findings, seconds, made_at), unknown


def made(card: machine.Card, target: Path | None = None) -> Choices:
    """The choices by a new certificate of ``card``, which is kept if it is complete; in memory if it cannot be."""
    from petx.certify.cases import CASES

    found, unknown = examined(card, list(CASES), True)
    if unknown is not None:
        return Choices(False, f"it could not be certified: {unknown}. `petx certify` tries again", card=card)
    target = target or file.path_of(found.facts)
    try:
        file.write(found, target)
    except OSError as error:
        _hint(target, error)
    return of_certificate(found, card)


def _hint(target: Path, error: OSError) -> None:
    warn(
        f"the card's certificate cannot be kept in {target.parent} ({error.strerror or error}), so every process makes "
        "its own; set PETX_CACHE to a folder that can be written, or PETX_CERTIFICATE to a file made by "
        "`petx certify --output FILE`"
    )
