"""TextVQA: soft accuracy over ten answers (official), and equality with the first (PETAL's released code)."""

from petx.data.examples import Example
from petx.metrics import _official
from petx.metrics._arguments import check_texts
from petx.metrics.exact import exact_match
from petx.metrics.vqa import vqa_accuracy

REFERENCES = True
__all__ = ["score"]


def score(predictions: list[str], examples: list[Example]) -> dict[str, float]:
    """In per cent ``accuracy``, VQA's soft accuracy with both sides normalised, and ``first answer``, of predictions as
    VQA's evaluation changes them against the first annotator's answer as it is."""
    check_texts("textvqa.score", "predictions", predictions)
    changed = [_official.prediction(text) for text in predictions]
    return {
        "accuracy": 100 * vqa_accuracy(predictions, [example.references for example in examples]),
        "first answer": 100 * exact_match(changed, [example.references[0] for example in examples]),
    }
