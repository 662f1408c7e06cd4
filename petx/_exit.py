"""How a process of the command ``petx`` ends."""

import atexit
import os
import sys
import threading
from typing import NoReturn

__all__ = ["leave"]


def leave(code: int) -> NoReturn:
    """End this process with exit code ``code``: ``sys.exit``, but safe while torch's gloo threads live.

    A thread of a gloo process group lets go of a collective's tensors some time after the collective has returned, and
    takes the interpreter's lock for it. Before Python 3.14 an interpreter that is ending ends such a thread inside a
    C++ destructor, and with it the process: "terminate called without an active exception", exit code -6 after a whole
    training. Destroying the group does not help, as DTensor's caches hold its mesh. So where there is a group, exit
    functions run, the output is flushed, and the interpreter is not taken down.
    """
    if not _in_gloo_group():
        sys.exit(code)
    # Waits for threads that are no daemons, as the interpreter does first.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except OSError:  # whoever read it has gone
                code = code or 1
    os._exit(code)


def _in_gloo_group() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return (
        distributed is not None
        and distributed.is_available()
        and distributed.is_initialized()
        and "gloo" in distributed.get_backend()
    )
