"""Lemmas of generated answers by spaCy, as LAVIS takes them of OK-VQA's and TextVQA's."""

import functools
import importlib
import importlib.util
from typing import Any

from petx.errors import UserError

MODEL = "en_core_web_sm"
GET = f"pip install spacy && python -m spacy download {MODEL}"
CHANGED = ("NOUN", "VERB")  # parts of speech whose words become lemmas


def check_lemmas() -> None:
    """Raise :class:`UserError` naming what is missing of spaCy and its model."""
    for package in ("spacy", MODEL):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"lemmatize needs {package}, which is not installed; get it with: {GET}")


def lemmatized(text: str) -> str:
    """``text`` with its nouns and verbs as lemmas, tokens apart by a space: "two dogs' toys" is "two dog ' toy"."""
    return " ".join(token.lemma_ if token.pos_ in CHANGED else token.text for token in _pipeline()(text))


@functools.cache
def _pipeline() -> Any:
    spacy: Any = importlib.import_module("spacy")
    try:
        return spacy.load(MODEL)
    except (OSError, ValueError) as error:  # a model of another version than spaCy's
        raise UserError(f"lemmatize: spaCy cannot load {MODEL} ({error}); get it with: {GET}") from error
