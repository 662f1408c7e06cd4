"""What happens at the first use of a card: its certificate is read, or made, or waited for.

Nothing here touches torch's generators, its default device, autocast, or its flags: kernels run in another process.
"""

import os

from petx.certify import cards as machine
from petx.certify import lookup, ranks
from petx.certify.choice import Choices, warn

# Set by compute-sanitizer, Nsight Compute and Nsight Systems in what they watch.
WATCHED = """NV_SANITIZER_INJECTION_PORT_BASE NV_NSIGHT_INJECTION_PORT_BASE CUDA_INJECTION64_PATH
NV_TPS_LAUNCH_TOKEN""".split()


def choices(device: int, fake: bool = False) -> Choices:
    """The choices of a card, whose certificate is made if there is none."""
    found = lookup.known(device)
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
        return ranks.first_use(found.card) if ranks.several() else lookup.certified(found.card)
    return Choices(False, f"{found.why}, and {why}", card=found.card)
