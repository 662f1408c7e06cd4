"""GQA: equal to the answer, as they are (official), and with the prediction normalised (PETAL's released code)."""

from petx.data.examples import Example
from petx.metrics import _official
from petx.metrics._arguments import check_texts
from petx.metrics.exact import exact_match

__all__ = ["score"]


def score(predictions: list[str], examples: list[Example]) -> dict[str, float]:
    """In per cent ``accuracy``, of texts as they are, and ``normalised``, of predictions as VQA's evaluation changes
    them against answers as they are."""
    answers = [example.answers[0][0] for example in examples]
    check_texts("gqa.score", "predictions", predictions)
    changed = [_official.prediction(text) for text in predictions]
    return {"accuracy": 100 * exact_match(predictions, answers), "normalised": 100 * exact_match(changed, answers)}
