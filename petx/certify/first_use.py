"""What happens at the first use of a card: its certificate is read, or made, or waited for.

Nothing here touches torch's generators, its default device, autocast, or its flags: kernels run in another process.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petx.certify import cards as machine
from petx.certify import certificate as file
from petx.certify import ranks
from petx.certify.choice import Choices, of_certificate, pinned, warn

WAIT = 30.0  # seconds that a process waits for another's certificate
UNCERTIFIED = "it is not certified yet (the first use of a card, or `petx certify`, does that)"
# Set by compute-sanitizer, Nsight Compute and Nsight Systems in what they watch.
WATCHED = """NV_SANITIZER_INJECTION_PORT_BASE NV_NSIGHT_INJECTION_PORT_BASE CUDA_INJECTION64_PATH
NV_TPS_LAUNCH_TOKEN""".split()


def choices(device: int, fake: bool = False) -> Choices:
    """The choices of a card, whose certificate is made if there is none."""
    found = known(device)
    by_certificate = found.card is not None and (found.all is None or not found.settled)
    if by_certificate and ranks.several() and ranks.mixed():
        return Choices(False, ranks.MIXED, card=found.card)
    if found.settled or found.card is None:
        return ranks.agreed(found) if found.certificate is not None and ranks.several() else found
    if fake:
        return found
    if found.ignored:
        warn(found.ignored)
    watched = [name for name in WATCHED if os.environ.get(name)]
    if machine.cards.capturing():
        why = "the stream is being captured, beside which nothing can be certified; call petx.certify.certify() before"
    elif watched:
        why = f"a tool watches this process ({watched[0]}); run `petx certify` without it before"
    else:
        return ranks.first_use(found.card) if ranks.several() else certified(found.card)
    return Choices(False, f"{found.why}, and {why}", card=found.card)


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
        return _given(Path(given), card, facts)
    try:
        found = file.read(file.path_of(facts))
    except FileNotFoundError:
        return Choices(False, UNCERTIFIED, card=card, settled=False)
    except file.Corrupt as error:
        return Choices(False, UNCERTIFIED, card=card, settled=False, ignored=f"{error}; it is ignored")
    if found.facts != facts:  # renamed by hand
        return Choices(False, UNCERTIFIED, card=card, settled=False, ignored=f"{found.path} is for something else")
    return of_certificate(found, card)


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
    if given and Path(given).is_file():
        with contextlib.suppress(file.Corrupt):
            found = file.read(Path(given))
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
