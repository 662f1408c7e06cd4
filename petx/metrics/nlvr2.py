"""NLVR2: exact match, and consistency, the share of sentences that are right on every pair of images."""

from collections import defaultdict

from petx.data.examples import Example
from petx.metrics._mean import mean
from petx.metrics.exact import exact_match

__all__ = ["score"]


def score(predictions: list[str], examples: list[Example]) -> dict[str, float]:
    """``accuracy`` and ``consistency`` in per cent; examples of one ``group`` have one sentence."""
    answers = [example.answers[0][0] for example in examples]
    right: dict[str, list[bool]] = defaultdict(list)
    for text, answer, example in zip(predictions, answers, examples, strict=True):
        right[example.group or example.text].append(text == answer)
    consistency = mean([float(all(group)) for group in right.values()])
    return {"accuracy": 100 * exact_match(predictions, answers), "consistency": 100 * consistency}
