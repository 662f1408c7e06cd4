"""The mean over examples."""

from collections.abc import Sequence


def mean(values: Sequence[float]) -> float:
    """Mean of ``values``; not a number if there are none."""
    return sum(values) / len(values) if values else float("nan")
