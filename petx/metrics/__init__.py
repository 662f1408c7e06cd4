"""Scores of generated answers and captions. One module per family; a task names it, and its ``score`` scores."""

from collections.abc import Callable
from types import ModuleType

from petx import _rooms
from petx.metrics.caption import bleu, cider_d, rouge_l
from petx.metrics.exact import exact_match
from petx.metrics.matches import match_accuracy
from petx.metrics.retrieval import recall
from petx.metrics.vqa import normalize_answer, vqa_accuracy, vqa_scores

__all__ = [
    "bleu",
    "cider_d",
    "exact_match",
    "find",
    "match_accuracy",
    "names",
    "normalize_answer",
    "reads_rankings",
    "reads_references",
    "recall",
    "rouge_l",
    "vqa_accuracy",
    "vqa_scores",
]


def names() -> list[str]:
    """The names of all metrics, as ``--metric`` and a task's ``metric`` take them."""
    return list(_rooms.modules(__name__))


def reads_references(name: str) -> bool:
    """Whether the metric ``name`` compares with the examples' references, its module's ``REFERENCES``."""
    return getattr(_found(name), "REFERENCES", False)


def reads_rankings(name: str) -> bool:
    """Whether the metric ``name`` scores rankings of retrieval in place of texts, its module's ``RANKINGS``."""
    return getattr(_found(name), "RANKINGS", False)


def find(name: str) -> Callable[..., dict[str, float]]:
    """``score(predictions, examples) -> {metric: value}`` of the metric ``name``; the first value is the main one.

    Raises ValueError for a name that is not in :func:`names`.
    """
    return _found(name).score


def _found(name: str) -> ModuleType:
    known = _rooms.modules(__name__)
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"name must be one of {', '.join(known)}, got {name!r}")
    return known[name]
