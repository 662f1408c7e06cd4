"""VQA soft accuracy over the annotators' answers, normalised as in the VQA evaluation."""

import re
from collections import Counter
from collections.abc import Iterable

from petx._checks import refuse_type
from petx.data.examples import Example
from petx.metrics._arguments import check_as_many, check_text_lists, check_texts
from petx.metrics._mean import mean

REFERENCES = True
__all__ = ["normalize_answer", "score", "vqa_accuracy", "vqa_scores"]

NUMBERS = {word: str(i) for i, word in enumerate("zero one two three four five six seven eight nine ten".split())}
NUMBERS["none"] = "0"
ARTICLES = {"a", "an", "the"}
CONTRACTIONS = {
    word.replace("'", ""): word
    for word in (
        "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
        "i'm i've isn't it'd it'll let's ma'am might've mightn't must've mustn't needn't not've o'clock shan't she'd "
        "should've shouldn't somebody's someone's something's that's there'd there're there's they'd they'll they're "
        "they've wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll "
        "who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've"
    ).split()
}
_PUNCTUATION = r"""[;/\[\]"{}()=+\\_\-><@`,?!:*&%$#~^|]"""


def normalize_answer(text: str) -> str:
    """An answer as the VQA evaluation compares it: lower case, no articles or punctuation, digits, full contractions.

    A punctuation mark beside a space or an end vanishes, one inside a word becomes a space; a comma between digits
    and a full stop that is no decimal point vanish.
    """
    if not isinstance(text, str):
        refuse_type("normalize_answer", "text", "a text", text)
    text = re.sub(r"(?<=\d),(?=\d)", "", text.lower().replace("\n", " ").replace("\t", " ").strip())
    # Between two other characters a mark becomes a space; beside a space or an end it goes.
    text = re.sub(rf"(?<=\S){_PUNCTUATION}(?=\S)", " ", text)
    text = re.sub(_PUNCTUATION, "", text)
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", "", text)
    kept = [NUMBERS.get(word, word) for word in text.split() if word not in ARTICLES]
    return " ".join(CONTRACTIONS.get(word, word) for word in kept)


def vqa_scores(annotations: Iterable[str]) -> dict[str, float]:
    """``{normalised answer: soft accuracy}`` for one question's annotators' answers.

    An answer scores min(matches / 3, 1) against each set that leaves one annotator out, averaged over the sets.
    """
    check_texts("vqa_scores", "annotations", annotations)
    given = [normalize_answer(answer) for answer in annotations]
    scores = {}
    for answer, count in Counter(given).items():
        without_one_of_it = min((count - 1) / 3, 1)
        scores[answer] = (count * without_one_of_it + (len(given) - count) * min(count / 3, 1)) / len(given)
    return scores


def vqa_accuracy(predictions: list[str], annotations: list[Iterable[str]]) -> float:
    """Mean VQA soft accuracy; ``annotations`` holds one list of the annotators' answers (normally ten) a question.

    Raises ValueError naming the argument, what came and what was wanted.
    """
    check_texts("vqa_accuracy", "predictions", predictions)
    check_text_lists("vqa_accuracy", "annotations", annotations)
    check_as_many("vqa_accuracy", "predictions", predictions, "annotations", annotations)
    pairs = zip(predictions, annotations, strict=True)
    return mean([vqa_scores(answers).get(normalize_answer(prediction), 0.0) for prediction, answers in pairs])


def score(predictions: list[str], examples: list[Example]) -> dict[str, float]:
    """In per cent ``accuracy``, as the released evaluation computes it, that of each kind of answer, and
    ``normalised``, for which both sides are normalised (:func:`vqa_accuracy`)."""
    from petx.metrics import _official

    check_texts("vqa.score", "predictions", predictions)
    each = [_official.soft_accuracy(text, one.references) for text, one in zip(predictions, examples, strict=True)]
    scores = {"accuracy": 100 * mean(each)}
    for kind in sorted({example.kind for example in examples} - {""}):
        scores[kind] = 100 * mean([value for value, one in zip(each, examples, strict=True) if one.kind == kind])
    scores["normalised"] = 100 * vqa_accuracy(predictions, [example.references for example in examples])
    return scores
