"""A-OKVQA's direct answers: how many annotators gave the answer, three being full marks."""

from collections.abc import Iterable

from petx.data.examples import Example
from petx.metrics._arguments import check_as_many, check_text_lists, check_texts
from petx.metrics._mean import mean
from petx.metrics.vqa import normalize_answer

REFERENCES = True
__all__ = ["match_accuracy", "score"]


def match_accuracy(predictions: list[str], annotations: list[Iterable[str]]) -> float:
    """Mean of min(matches / 3, 1) over all annotators' answers, as A-OKVQA's direct answers are scored.

    Raises ValueError unless ``annotations`` has a list of texts for each of ``predictions``.
    """
    check_texts("match_accuracy", "predictions", predictions)
    check_text_lists("match_accuracy", "annotations", annotations)
    check_as_many("match_accuracy", "predictions", predictions, "annotations", annotations)
    scores = []
    for prediction, answers in zip(predictions, annotations, strict=True):
        given = [normalize_answer(answer) for answer in answers]
        scores.append(min(given.count(normalize_answer(prediction)) / 3, 1.0))
    return mean(scores)


def score(predictions: list[str], examples: list[Example]) -> dict[str, float]:
    """``accuracy`` in per cent against each example's references."""
    return {"accuracy": 100 * match_accuracy(predictions, [example.references for example in examples])}
