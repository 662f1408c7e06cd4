"""METEOR 1.5 (Denkowski and Lavie, 2014) by pycocoevalcap, a Java program: only where both are."""

import importlib
import importlib.util
import shutil
from collections.abc import Sequence
from typing import Any

from petx.errors import UserError
from petx.metrics.caption import caption_words

_GET = "pip install --no-deps pycocoevalcap==1.2"


def check_meteor() -> None:
    """Raise :class:`UserError` naming what is missing of Java and pycocoevalcap."""
    if shutil.which("java") is None:
        raise UserError("METEOR needs Java: no java on PATH")
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise UserError(f"METEOR needs pycocoevalcap; get it with: {_GET}")


def meteor(captions: list[str], references: Sequence[Sequence[str]]) -> float:
    """METEOR of ``captions``, a list of texts, against a list of texts each; 1 is the best. On the words of
    :func:`petx.metrics.caption.caption_words`, as petx's other scores of captions."""
    program: Any = importlib.import_module("pycocoevalcap.meteor.meteor").Meteor()
    plain = {i: [_plain(text)] for i, text in enumerate(captions)}
    given = {i: [_plain(text) for text in texts] for i, texts in enumerate(references)}
    return float(program.compute_score(given, plain)[0])


def _plain(text: str) -> str:
    return " ".join(caption_words(text))
