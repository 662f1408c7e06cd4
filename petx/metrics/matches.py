"""A-OKVQA's direct answers: how many annotators gave the answer, three being full marks."""

from collections.abc import Iterable

from petx._checks import check_flag
from petx.data.examples import Example
from petx.metrics._arguments import check_as_many, check_text_lists, check_texts
from petx.metrics._mean import mean
from petx.metrics.vqa import normalize_answer

REFERENCES = True
__all__ = ["match_accuracy", "score"]


def match_accuracy(predictions: list[str], annotations: list[Iterable[str]], *, normalised: bool = True) -> float:
    """Mean of min(matches / 3, 1) over all annotators' answers, as A-OKVQA's direct answers are scored.

    ``normalised``: both sides as the VQA evaluation normalises them; A-OKVQA itself compares them as they are. Raises
    ValueError unless ``annotations`` has a list of texts for each of ``predictions``.
    """
    check_texts("match_accuracy", "predictions", predictions)
    check_text_lists("match_accuracy", "annotations", annotations)
    check_as_many("match_accuracy", "predictions", predictions, "annotations", annotations)
    check_flag("match_accuracy", normalised=normalised)
    scores = []
    for prediction, answers in zip(predictions, annotations, strict=True):
        given, text = list(answers), prediction
        if normalised:
            given, text = [normalize_answer(answer) for answer in answers], normalize_answer(prediction)
        scores.append(min(given.count(text) / 3, 1.0))
    return mean(scores)


def score(predictions: list[str], examples: list[Example]) -> dict[str, float]:
    """In per cent ``accuracy``, texts compared as they are (released and official), and ``normalised``."""
    given: list[Iterable[str]] = [example.references for example in examples]
    return {
        "accuracy": 100 * match_accuracy(predictions, given, normalised=False),
        "normalised": 100 * match_accuracy(predictions, given),
    }
