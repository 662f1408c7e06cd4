"""Exact match with the answer, for questions of each kind apart as well."""

from petx.data.examples import Example
from petx.metrics._arguments import check_as_many, check_texts
from petx.metrics._mean import mean

__all__ = ["exact_match", "score"]


def exact_match(predictions: list[str], answers: list[str]) -> float:
    """Share of predictions equal to their answer, between 0 and 1. Raises ValueError unless both are as many texts."""
    check_texts("exact_match", "predictions", predictions)
    check_texts("exact_match", "answers", answers)
    check_as_many("exact_match", "predictions", predictions, "answers", answers)
    return mean([float(prediction == answer) for prediction, answer in zip(predictions, answers, strict=True)])


def score(predictions: list[str], examples: list[Example]) -> dict[str, float]:
    """``accuracy`` in per cent, and that of every kind of question; the answer is the first annotator's if there are
    several."""
    answers = [one.references[0] if one.references else one.answers[0][0] for one in examples]
    scores = {"accuracy": 100 * exact_match(predictions, answers)}
    for kind in sorted({example.kind for example in examples} - {""}):
        chosen = [i for i, example in enumerate(examples) if example.kind == kind]
        scores[kind] = 100 * exact_match([predictions[i] for i in chosen], [answers[i] for i in chosen])
    return scores
