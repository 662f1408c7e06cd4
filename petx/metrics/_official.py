"""Answers as the released VQA evaluation changes them: marks first, then lower case, digits, articles, contractions."""

import re

from petx.metrics.vqa import ARTICLES, CONTRACTIONS, NUMBERS

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA = re.compile(r"\d,\d")
_DOT = re.compile(r"\.(?!\d)")


def without_marks(text: str) -> str:
    """``text`` without the marks ``; / [ ] " { } ( ) = + \\ _ - > < @ ` , ? !`` and without dots before anything but a
    digit.

    A mark that stands beside a space anywhere in the text goes wherever it stands, and so does each in a text with a
    comma between two digits; another becomes a space.
    """
    changed = text
    for mark in _MARKS:
        goes = f"{mark} " in text or f" {mark}" in text or _COMMA.search(text) is not None
        changed = changed.replace(mark, "" if goes else " ")
    return _DOT.sub("", changed)


def prediction(text: str) -> str:
    """A prediction as the released evaluation compares it."""
    plain = without_marks(text.replace("\n", " ").replace("\t", " ").strip())
    kept = [NUMBERS.get(word, word) for word in plain.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in kept if word not in ARTICLES)


def soft_accuracy(text: str, annotations: tuple[str, ...]) -> float:
    """min(matches / 3, 1) of a prediction over the annotators, each left out in turn.

    The prediction is changed as :func:`prediction` does; the annotators' answers lose their marks, and only where they
    differ among themselves.
    """
    given = annotations if len(set(annotations)) == 1 else tuple(map(without_marks, annotations))
    count, total = given.count(prediction(text)), len(given)
    return (count * min((count - 1) / 3, 1) + (total - count) * min(count / 3, 1)) / total
