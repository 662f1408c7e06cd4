"""Recall at 1, 5 and 10 of retrieval, from images to captions and from captions to images, and their mean."""

from collections.abc import Collection, Sequence
from typing import Any

from petx._checks import check_size, refuse_type
from petx.data.examples import Example
from petx.data.rankings import names
from petx.metrics._arguments import check_as_many
from petx.metrics._mean import mean

REFERENCES = True
RANKINGS = True  # of predictions: petx.data.rankings.Ranking in place of texts
DEPTHS = (1, 5, 10)
__all__ = ["recall", "score"]


def recall(rankings: Sequence[Sequence[Any]], relevant: Sequence[Collection[Any]], k: int) -> float:
    """Share of queries with at least one of their ``relevant`` among the first ``k`` of their ranking, best first.

    Raises ValueError unless there is a ranking and something relevant for every query.
    """
    check_size("recall", k=k)
    for name, value in (("rankings", rankings), ("relevant", relevant)):
        if not isinstance(value, list | tuple):
            refuse_type("recall", name, "a list with an entry for each query", value)
        for i, one in enumerate(value):
            if isinstance(one, str) or not isinstance(one, Sequence if name == "rankings" else Collection):
                refuse_type("recall", f"{name}[{i}]", "several of what is ranked", one)
    check_as_many("recall", "rankings", rankings, "relevant", relevant)
    for i, wanted in enumerate(relevant):
        if not wanted:
            raise ValueError(f"recall: relevant[{i}] must hold at least one, got none")
    pairs = zip(rankings, relevant, strict=True)
    return mean([float(any(one in wanted for one in ranking[:k])) for ranking, wanted in pairs])


def score(predictions: list[Any], examples: list[Example]) -> dict[str, float]:
    """In per cent ``mean recall``, of the six that follow: ``i2t r1``, ``i2t r5``, ``i2t r10``, of images with any of
    their captions among the first, and ``t2i r1`` and so on, of captions with their image among the first."""
    images, captions = names(examples)
    to_text = [ranking.captions for ranking in predictions]
    to_image = [best for ranking in predictions for best in ranking.images]
    owners = [{image} for image, own in zip(images, captions, strict=True) for _ in own]
    scores = {f"i2t r{k}": 100 * recall(to_text, [set(own) for own in captions], k) for k in DEPTHS}
    scores |= {f"t2i r{k}": 100 * recall(to_image, owners, k) for k in DEPTHS}
    return {"mean recall": mean(list(scores.values()))} | scores
