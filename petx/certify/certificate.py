"""The certificate of a card: one JSON file, named by a hash of all that it holds for."""

import contextlib
import functools
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from petx.certify.cards import Card
from petx.data.cache import cache_dir, file_sha256, fingerprint
from petx.files import write_json
from petx.version import __version__

FORMAT = 1
STALE = 600.0  # seconds after which a lock is a dead process's
RIGHT, WRONG, UNKNOWN = "right", "wrong", "unknown"


@dataclass
class Finding:
    """What was found out about an operation in one dtype.

    ``verdict``: right; wrong, with the reason in ``said``; or unknown: nothing could be found out, which is no fault of
    the kernel. ``worst`` is the result nearest to its bound: ``{"case", "name", "error", "bound"}``. ``times`` has
    ``[rows, width, rank, seconds by petx, seconds by eager torch]`` of a forward and backward.
    """

    verdict: str
    said: str | None = None
    cases: int = 0
    worst: dict[str, Any] | None = None
    times: list[list[float]] = field(default_factory=list)


Findings = dict[str, dict[str, Finding]]  # operation -> name of the dtype -> finding


@dataclass
class Certificate:
    """Findings, with what they hold for; ``path`` is where it lies, None if only in memory."""

    facts: dict[str, Any]
    findings: Findings
    seconds: float = 0.0
    made: str = ""
    path: Path | None = None

    def as_json(self) -> dict[str, Any]:
        findings = {stem: {name: vars(f) for name, f in by.items()} for stem, by in self.findings.items()}
        values = {"format": FORMAT, "for": self.facts, "made": self.made, "seconds": self.seconds}
        return values | {"operations": findings}


class Corrupt(ValueError):
    """A file that is no certificate, with the reason."""


@functools.cache
def library_facts() -> dict[str, str]:
    """The software that a certificate holds for."""
    from petx import ops

    library = file_sha256(str(ops._C.__file__)) if ops._C is not None else "none"
    return {"petx": __version__, "library": library, "torch": torch.__version__}


def facts_of(card: Card) -> dict[str, Any]:
    return library_facts() | {"card": card.facts()}


def key_of(facts: dict[str, Any]) -> str:
    return fingerprint(FORMAT, facts)[:32]


def folder() -> Path:
    return cache_dir() / "certified"


def path_of(facts: dict[str, Any]) -> Path:
    return folder() / f"{key_of(facts)}.json"


def read(path: Path) -> Certificate:
    """The certificate at ``path``; FileNotFoundError without one, :class:`Corrupt` if it is something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise Corrupt(f"{path} has the format {values['format']!r}, not {FORMAT}")
        return from_json(values, path)
    except (FileNotFoundError, Corrupt):
        raise
    except OSError as error:
        raise Corrupt(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"{path} is no certificate: {type(error).__name__}: {error}") from error


def from_json(values: dict[str, Any], path: Path | None = None) -> Certificate:
    """The certificate that :meth:`Certificate.as_json` gave."""
    findings = {
        stem: {name: _finding(found) for name, found in by.items()} for stem, by in values["operations"].items()
    }
    if not isinstance(values["for"], dict) or not isinstance(values["for"].get("card"), dict):
        raise TypeError("what it holds for is no card")
    return Certificate(values["for"], findings, float(values["seconds"]), str(values["made"]), path)


def _finding(values: dict[str, Any]) -> Finding:
    found = Finding(**values)
    if found.verdict not in (RIGHT, WRONG):
        raise ValueError(f"verdict {found.verdict!r}")
    if found.verdict == WRONG and not isinstance(found.said, str):
        raise ValueError("a wrong kernel without a reason")
    found.times = [[float(number) for number in point] for point in found.times]
    if any(len(point) != 5 or min(point) <= 0 for point in found.times):
        raise ValueError("a time that is none")
    return found


def write(certificate: Certificate, path: Path) -> None:
    """Write it whole or not at all."""
    write_json(path, certificate.as_json())
    certificate.path = path


class Busy(Exception):
    """Another process holds the lock."""


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold ``path`` beside all processes that may write the same certificate; :class:`Busy` if one has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(3):
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            if not _left_behind(path):
                raise Busy(str(path)) from None
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            continue
        with os.fdopen(handle, "w") as file:
            file.write(json.dumps({"pid": os.getpid(), "machine": socket.gethostname()}))
        try:
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        return
    raise Busy(str(path))


def _left_behind(path: Path) -> bool:
    """Whether the process that made the lock is gone."""
    try:
        age = time.time() - path.stat().st_mtime
        holder = json.loads(path.read_text(encoding="utf-8") or "{}")
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return age > STALE
    if age > STALE:
        return True
    if holder.get("machine") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
