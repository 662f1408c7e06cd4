"""A card's certificate as this process finds it: read, made here, or made by another process that has begun."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petx.certify import cards as machine
from petx.certify import certificate as file
from petx.certify.choice import Choices, of_certificate, pinned
from petx.errors import UserError
from petx.files import user_path

WAIT = 30.0  # seconds that a process waits for another's certificate
UNCERTIFIED = "it is not certified yet (the first use of a card, or `petx certify`, does that)"


def known(device: int) -> Choices:
    """The choices of a card from what is there already. Without a certificate, ``settled`` is false."""
    from petx import ops

    pin = pinned()
    if pin is False:
        return Choices(False, "PETX_CUDA_KERNELS=0 is set")
    if machine.cards.count() == 0:  # an export, or fake tensors
        if pin:
            return Choices(True)
        return _without_a_card()
    if device >= machine.cards.count():
        return Choices(False, f"there is no GPU {device}")
    card = machine.cards.card(device)
    obstacle = "petx._C is not loaded" if ops._C is None else machine.unusable(card.capability, ops._C.build_info())
    if obstacle:
        return Choices(False, obstacle, card=card)
    if pin:
        return Choices(True, card=card)
    facts = file.facts_of(card)
    given = os.environ.get("PETX_CERTIFICATE")
    if given:
        return _given(_expanded(given), card, facts)
    try:
        found = file.read(file.path_of(facts))
    except FileNotFoundError:
        return Choices(False, UNCERTIFIED, card=card, settled=False)
    except file.Corrupt as error:
        return Choices(False, UNCERTIFIED, card=card, settled=False, ignored=f"{error}; it is ignored")
    if found.facts != facts:  # renamed by hand
        return Choices(False, UNCERTIFIED, card=card, settled=False, ignored=f"{found.path} is for something else")
    return of_certificate(found, card)


def _expanded(given: str) -> Path:
    try:
        return user_path(given, "PETX_CERTIFICATE")
    except UserError:  # nothing to stand for its ~, so that there is no such file
        return Path(given)


def _given(path: Path, card: machine.Card, facts: dict[str, Any]) -> Choices:
    """The certificate that ``PETX_CERTIFICATE`` names, a file or the folder of several; it is never written."""
    if path.is_dir():
        path = path / f"{file.key_of(facts)}.json"
    try:
        found = file.read(path)
    except FileNotFoundError:
        why = f"PETX_CERTIFICATE names {path}, which does not exist"
    except file.Corrupt as error:
        why = f"PETX_CERTIFICATE: {error}"
    else:
        other = [name for name in facts if found.facts.get(name) != facts[name]]
        if not other:
            return of_certificate(found, card)
        why = f"PETX_CERTIFICATE: {path} is for another {' and another '.join(other)}"
    return Choices(False, f"{why}; `petx certify --output FILE` makes one", card=card)


def _without_a_card() -> Choices:
    """For fake tensors of a GPU that is not here: a file that is named, if it is of this software."""
    given = os.environ.get("PETX_CERTIFICATE")
    if given and _expanded(given).is_file():
        with contextlib.suppress(file.Corrupt):
            found = file.read(_expanded(given))
            if {name: found.facts.get(name) for name in file.library_facts()} == file.library_facts():
                return of_certificate(found, None)
    return Choices(False, "no GPU is visible, and PETX_CERTIFICATE names no certificate of this library", settled=False)


def certified(card: machine.Card, wait: float = WAIT) -> Choices:
    """The choices of a card that has no certificate: made here, or by another process that has begun."""
    from petx.certify.api import made

    target = file.path_of(file.facts_of(card))
    end = time.monotonic() + wait
    while True:
        try:
            with _locked(target.with_suffix(".lock")):
                found = known(card.index)  # another process may have been faster
                return found if found.certificate is not None else made(card)
        except file.Busy:
            found = known(card.index)
            if found.certificate is not None:
                return found
            if time.monotonic() > end:
                why = f"another process has been certifying it for {wait:.0f} s; `petx certify` shows what it finds"
                return Choices(False, why, card=card)
            time.sleep(0.1)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The lock, or nothing if none can be made: a folder that cannot be written is everybody's own."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file.lock(path))
        except OSError:
            pass
        yield
