"""The process that runs the kernels on a card: it may hang or die, and its parent judges that, too.

Its parent writes one JSON request to its standard input: ``card``, the facts of the card that it should see, ``work``,
pairs of an operation and the name of a dtype, ``device``, torch's name of it, and ``timed``, whether stage 2 is wanted.
It answers on the file descriptor that its last argument names with one JSON object per line, whose ``event`` is

- ``ready``: with the ``card`` that it sees,
- ``case``: what it runs next,
- ``found``: the finding about an operation and dtype,
- ``unknown``: that nothing can be found out here, for a reason that is not the kernels',
- ``end``.

After a kernel has raised an error the process ends: on a GPU, nothing in it can be trusted any more.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

RAISED = 7  # exit code after a kernel's error

# What CUDA says when the card is not to be had, which is no fault of a kernel.
NOT_TO_BE_HAD = (
    "out of memory",
    "busy or unavailable",
    "exclusive",
    "no cuda gpus are available",
    "driver version is insufficient",
    "initialization error",
    "no cuda-capable device",
    "found no nvidia driver",
    "cublas_status_alloc_failed",
    "cublas_status_not_initialized",
)

Tell = Callable[..., None]


def main() -> int:
    import torch

    tell = teller(int(sys.argv[-1]))
    request = json.loads(sys.stdin.readline())
    try:
        torch.cuda.init()
        torch.empty(1, device=request["device"])
        from petx.certify.cards import cards

        card = cards.card(0)
    except Exception as error:
        tell(event="unknown", said=in_one_line(error))
        return 0
    torch.backends.cuda.matmul.allow_tf32 = False
    return serve(request, card.facts(), tell)


def teller(descriptor: int) -> Tell:
    """What writes an answer to the parent."""
    stream = os.fdopen(descriptor, "w", buffering=1)
    return lambda **answer: print(json.dumps(answer), file=stream, flush=True)


def serve(request: dict[str, Any], card: dict[str, Any], tell: Tell) -> int:
    """Find out all that ``request`` asks for on ``card``."""
    import torch

    tell(event="ready", card=card)
    if card != request["card"]:
        tell(event="unknown", said=f"the process saw another card, {card['name']}")
        return 0
    torch.manual_seed(0)
    for stem, name in request["work"]:
        dtype, place = getattr(torch, name), {"stem": stem, "dtype": name}

        def running(what: str, place: dict[str, str] = place) -> None:
            tell(event="case", what=what, **place)

        try:
            finding = examine(stem, dtype, request["device"], request["timed"], running)
        except Exception as error:
            if not_to_be_had(error):
                tell(event="unknown", said=in_one_line(error))
                return 0
            tell(event="raised", said=in_one_line(error), **place)
            return RAISED
        tell(event="found", finding=vars(finding), **place)
    tell(event="end")
    return 0


def examine(stem: str, dtype: Any, device: str, timed: bool, say: Callable[[str], None]) -> Any:
    """The finding about operation ``stem`` in ``dtype``."""
    import torch

    from petx import ops
    from petx.certify import speed, trial
    from petx.certify.certificate import UNKNOWN, Finding

    if not ops.compiled(stem, torch.device(device).type):
        return Finding(UNKNOWN, ops.why_absent(stem, torch.device(device).type))
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what a kernel leaves unwritten with NaN
    try:
        found = trial.tried(stem, dtype, device, say)
    finally:
        torch.use_deterministic_algorithms(False)
    if timed and found.verdict == "right":
        found.times = speed.times(stem, dtype, device, say)
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return found


def not_to_be_had(error: BaseException) -> bool:
    import torch

    text = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(part in text for part in NOT_TO_BE_HAD)


def in_one_line(error: BaseException) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{type(error).__name__}: {text[:300]}"
