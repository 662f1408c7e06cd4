"""Multiple choice: whether the choice that is most like the generated text is the right one."""

from petx.data.examples import Example
from petx.data.predictions import chosen_of
from petx.metrics.exact import exact_match

__all__ = ["score"]


def score(predictions: list[str], examples: list[Example]) -> dict[str, float]:
    """In per cent ``accuracy``, of the choice most like each text, and ``as generated``, of the texts as they are."""
    answers = [example.answers[0][0] for example in examples]
    chosen = [chosen_of(text, example.choices) for text, example in zip(predictions, examples, strict=True)]
    return {"accuracy": 100 * exact_match(chosen, answers), "as generated": 100 * exact_match(predictions, answers)}
