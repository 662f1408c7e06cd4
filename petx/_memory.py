"""The memory that there is, beside which a size that somebody asks for is told in bytes."""

import os
from pathlib import Path

# The container's limit (cgroup 2 and 1), as a process in it sees them; a machine without one has no number there.
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory() -> int:
    """Bytes of the machine's memory, or of what its container may take of it."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in LIMITS:
        try:
            text = Path(file).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        if text.isdecimal():  # and not "max"
            found.append(int(text))
    return min(found)
