"""The machine's memory, beside which a size that somebody asks for is told in bytes."""

import os


def memory() -> int:
    """Bytes of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
