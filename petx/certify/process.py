"""Runs the child that certifies, with limits, and judges what becomes of it."""

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from petx.certify.cards import Card, Cards
from petx.certify.certificate import UNKNOWN, WRONG, Finding, Findings
from petx.certify.child import RAISED

Work = list[tuple[str, str]]  # pairs of an operation and the name of a dtype


@dataclass(frozen=True)
class Limits:
    """Seconds: until the child has loaded torch and found its card, between two of its answers, over all."""

    start: float = 120.0
    silence: float = 60.0
    whole: float = 600.0


class Child:
    """One run of the child: its answers, one after another, until it ends or is stopped."""

    def __init__(self, cards: Cards, card: Card, work: Work, timed: bool, device: str) -> None:
        command, environment = cards.child(card.index)
        reader, writer = os.pipe()
        self.log: IO[str] = tempfile.TemporaryFile("w+", errors="replace")
        try:
            self.process = subprocess.Popen(
                [*command, str(writer)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=self.log,
                stderr=self.log,
                pass_fds=[writer],
                start_new_session=True,  # so that all it starts ends with it, and Ctrl-C is its parent's alone
                text=True,
                errors="replace",  # whatever the locale's encoding lacks
            )
        except BaseException:
            os.close(reader)
            self.log.close()
            raise
        finally:
            os.close(writer)
        self.reader = reader
        request = {"card": card.facts(), "work": work, "timed": timed, "device": device}
        with contextlib.suppress(BrokenPipeError):
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.close()

    def answers(self, limits: Limits) -> Iterator[dict[str, Any]]:
        """What it says; TimeoutError if it says nothing for too long, ValueError if that is no answer."""
        rest, wait, end = b"", limits.start, time.monotonic() + limits.whole
        while True:
            left = min(wait, end - time.monotonic())
            if left <= 0 or not select.select([self.reader], [], [], left)[0]:
                silent = time.monotonic() < end
                raise TimeoutError(f"nothing was heard for {wait:g} s" if silent else f"{limits.whole:g} s are over")
            data = os.read(self.reader, 1 << 16)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                answer = json.loads(line)
                if not isinstance(answer, dict) or not isinstance(answer.get("event"), str):
                    raise ValueError(f"{line[:80]!r}")
                yield answer
            wait = limits.silence

    def end(self) -> int:
        """Stop what still runs; its exit status."""
        os.close(self.reader)
        try:
            status = self.process.wait(timeout=5 if self.process.poll() is None else 0)
        except subprocess.TimeoutExpired:
            status = 0
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return status

    def last_words(self) -> str:
        """The last line that it wrote to its output, with a colon before it."""
        self.log.seek(0)
        lines = [line.strip() for line in self.log.read()[-4000:].splitlines() if line.strip()]
        self.log.close()
        return f": {lines[-1][:300]}" if lines else ""


def examined(
    cards: Cards, card: Card, work: Work, *, timed: bool = True, limits: Limits | None = None, device: str = "cuda:0"
) -> tuple[Findings, str | None]:
    """The findings about all of ``work`` on ``card``, and why they are not complete, or None.

    A kernel that raises an error, that ends its process or that never ends is wrong; another process goes on with what
    is left. What is no fault of the kernels (no memory, a card that another process has for itself, a child that is
    killed or talks nonsense) makes the rest unknown.
    """
    findings: Findings = {}
    limits = limits or Limits()
    left = list(work)
    while left:
        blamed, unknown = _run(cards, card, left, timed, limits, device, findings)
        left = [pair for pair in left if pair[1] not in findings.get(pair[0], {})]
        if unknown is not None:
            for stem, dtype in left:
                findings.setdefault(stem, {})[dtype] = Finding(UNKNOWN, unknown)
            return findings, unknown
        if blamed is not None:
            (stem, dtype), said = blamed
            findings.setdefault(stem, {})[dtype] = Finding(WRONG, said)
            left = [pair for pair in left if pair != (stem, dtype)]
    unfinished = [f.said for by in findings.values() for f in by.values() if f.verdict == UNKNOWN]
    return findings, unfinished[0] if unfinished else None


def _run(
    cards: Cards, card: Card, work: Work, timed: bool, limits: Limits, device: str, findings: Findings
) -> tuple[tuple[tuple[str, str], str] | None, str | None]:
    """One child's findings; then whom to blame for its end and why, or why nothing is known."""
    try:
        child = Child(cards, card, work, timed, device)
    except OSError as error:
        return None, f"no process could be started: {error.strerror or error}"
    at: tuple[str, str] | None = None
    doing, late, nonsense, unknown, raised, ended = "", None, None, None, None, False
    try:
        for answer in child.answers(limits):
            event = answer["event"]
            if event == "case":
                at, doing = (answer["stem"], answer["dtype"]), answer["what"]
            elif event == "found":
                findings.setdefault(answer["stem"], {})[answer["dtype"]] = Finding(**answer["finding"])
                at = None
            elif event == "raised":
                at, raised = (answer["stem"], answer["dtype"]), answer["said"]
            elif event == "unknown":
                unknown = answer["said"]
            ended = ended or event == "end"
    except TimeoutError as error:
        late = str(error)
    except (ValueError, KeyError, TypeError) as error:
        nonsense = f"the process gave an answer that is none: {error}"
    finally:
        status = child.end()
    if unknown is not None or nonsense is not None:
        return None, unknown or nonsense
    if at is not None and at not in work:
        return None, f"the process spoke of {at[0]}, {at[1]}, which nobody asked for"
    if raised is not None and at is not None:
        return (at, f"{doing or 'it'} raises {raised}"), None
    if late is not None:
        return ((at, f"{doing} does not end: {late}"), None) if at else (None, f"the process does not answer: {late}")
    if ended and status == 0:
        missing = [pair for pair in work if pair[1] not in findings.get(pair[0], {})]
        return None, f"the process said nothing of {missing[0][0]}, {missing[0][1]}" if missing else None
    how = _how(status)
    if at is not None and status not in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT):
        return (at, f"{doing} ends the process {how}{child.last_words()}"), None
    return None, f"the process ended {how}{child.last_words()}"


def _how(status: int) -> str:
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"by {signal.Signals(-status).name}"
    return f"with exit code {status}" + (" after an error" if status == RAISED else "")
