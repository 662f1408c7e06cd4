"""The end of a run by a signal: SIGTERM, SIGHUP and what else ends a process are told as Ctrl-C is."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from accelerate import PartialState

# What schedulers send, at the end of the time or some minutes before, and the system at the end of a limit of CPU time.
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


class Stopped(KeyboardInterrupt):
    """The signal ``number`` came: what ends a run on Ctrl-C ends it then, too."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def as_interruption() -> Iterator[None]:
    """Raise :class:`Stopped` for the signals that end a run, unless they are ignored, as under nohup.

    Processes that are forked meanwhile, the readers of training data, keep the signals' usual meaning.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def stop(number: int, _: Any) -> None:
        if os.getpid() == owner:
            raise Stopped(number)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = {number: handler for number, handler in before.items() if handler is signal.SIG_DFL}
    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


def name(stop: KeyboardInterrupt) -> str:
    return f"Stopped by {stop}" if isinstance(stop, Stopped) else "Interrupted"


def exit_code(stop: KeyboardInterrupt) -> int:
    """128 and the signal's number, as a shell has it."""
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)


def last_words(text: str) -> None:
    """``text`` of the main process; to stderr, too, once stdout is gone, and to nobody if both are."""
    if not PartialState().is_main_process:
        return
    for stream in (sys.stdout, sys.stderr):
        try:
            print(text, file=stream, flush=True)
            return
        except (OSError, ValueError):
            continue
