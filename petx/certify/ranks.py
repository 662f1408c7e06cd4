"""Several processes of one training: they take the same path, without a word over the network.

The first process of a node certifies; the others wait for the certificate. Whether it came in time is settled once for
the whole run, by who is first to create the run's file: a process that gave up waiting writes ``reference`` into it,
one that holds a certificate ``certificate``, and all do what stands there. The processes of several nodes share no
such file, so there nothing is certified: a certificate counts that every node has before the run. Cards of several
kinds have certificates that may differ, so there none counts.
"""

import contextlib
import os
import time
from pathlib import Path

from torch import distributed

from petx.certify import cards as machine
from petx.certify import certificate as file
from petx.certify import lookup
from petx.certify.cards import Card
from petx.certify.choice import Choices

MIXED = (
    "the processes of this run have cards of several kinds, whose certificates may differ, and all take the same path; "
    "PETX_CUDA_KERNELS=1 takes the kernels on all of them"
)
KEPT = 30 * 86400.0  # seconds after which a run's file is cleared away


def several() -> bool:
    """Whether this process is one of several: by the variables that torchrun and its like set, or by torch's group."""
    return _world() > 1


def several_nodes() -> bool:
    return _number("LOCAL_WORLD_SIZE", _world()) < _world()


def _world() -> int:
    return _number("WORLD_SIZE", distributed.get_world_size() if _has_group() else 1)


def _first_of_node() -> bool:
    rank = _number("RANK", distributed.get_rank() if _has_group() else 0)
    return _number("LOCAL_RANK", rank) == 0


def _has_group() -> bool:
    """Whether torch knows of other processes that no variable names: those of torch.multiprocessing.spawn."""
    return distributed.is_available() and distributed.is_initialized()


def mixed() -> bool:
    """Whether the cards that the processes of this node use, as far as this one sees them, are of several kinds."""
    local = _number("LOCAL_WORLD_SIZE", _world())
    kinds = [machine.cards.card(index).facts() for index in range(min(machine.cards.count(), local))]
    return any(facts != kinds[0] for facts in kinds)


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else default


def first_use(card: Card) -> Choices:
    """The choices of a card without a certificate."""
    if several_nodes():
        why = (
            "it has no certificate, and the nodes of one run cannot settle on one; run `petx certify --output FILE` "
            "once and set PETX_CERTIFICATE=FILE on every node"
        )
        return Choices(False, why, card=card)
    if _first_of_node():
        return agreed(lookup.certified(card))
    end = time.monotonic() + lookup.WAIT
    while True:
        found = lookup.known(card.index)
        if found.certificate is not None or found.settled:
            return agreed(found)
        if _decision(None) == "reference" or time.monotonic() > end:
            return agreed(found)
        time.sleep(0.1)


def agreed(found: Choices) -> Choices:
    """``found``, unless the run goes by the reference."""
    if several_nodes():
        return found
    decision = _decision("certificate" if found.certificate is not None else "reference")
    if decision == "certificate" and found.certificate is not None:
        return found
    if decision is None and found.certificate is not None:
        return found  # no file can be written; then every process certifies for itself
    why = "a process of this run had no certificate in time, and all take the same path; run `petx certify` before it"
    return Choices(False, why, card=found.card)


def _decision(mine: str | None) -> str | None:
    """What the run goes by; ``mine`` if nobody has settled it. None if that is open, or no file can be written."""
    path = file.folder() / "runs" / _run()
    with contextlib.suppress(OSError):
        if mine is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            _clear(path.parent)
            scratch = path.with_name(f"{path.name}.{os.getpid()}")
            scratch.write_text(mine, encoding="utf-8")
            with contextlib.suppress(FileExistsError):
                os.link(scratch, path)  # appears whole, once
            scratch.unlink()
        return path.read_text(encoding="utf-8")
    return None


def _run() -> str:
    """A name that the processes of this run on this node share, and no other run has: by their launcher."""
    parent = os.getppid()
    try:
        started = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started = "0"
    parts = [os.environ.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")]
    return file.fingerprint(os.uname().nodename, parent, started, *parts)[:32]


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > KEPT:
                path.unlink()
