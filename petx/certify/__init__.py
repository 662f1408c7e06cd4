"""On a GPU the CUDA kernels work by default, because each card certifies them first.

:func:`certify` runs them on a card, in a process of its own, and keeps what it found as the card's certificate;
:mod:`petx.ops` asks :mod:`petx.certify.choice`, which reads it, and certifies by itself at the first use of a card.
docs/certify.md has the whole of it.
"""

from petx.certify._record import differences, record
from petx.certify.api import certify

__all__ = ["certify", "differences", "record"]
