"""Questions and captions as a host reads them that takes instructions: templates, and a task of such items."""

from collections.abc import Callable
from string import Formatter
from typing import Any

import torch

from petx.data.lemmas import lemmatized
from petx.data.stores import ImageFiles
from petx.data.task import Task
from petx.errors import UserError

MOST_WORDS = 50  # of a cleaned text
_MARKS = '.!"()*#:;~'
_DROPPED, _SPACED = str.maketrans("", "", _MARKS), str.maketrans(_MARKS, " " * len(_MARKS))


def instruction(template: str, question: str) -> str:
    """``template`` with ``question`` for its ``{q}``; :class:`UserError` if it has another field."""
    try:
        fields = [tuple(field) for _, *field in Formatter().parse(template) if field[0] is not None]
    except ValueError as error:
        raise UserError(f"instruction template {template!r} cannot be read: {error}") from error
    for name, layout, conversion in fields:
        if name != "q" or layout or conversion:
            raise UserError(f"instruction template {template!r}: {{q}} is the only field there is, got {name!r}")
    return template.format(q=question).strip()


def plain(text: str) -> str:
    """The first 50 words in lower case without ``. ! " ( ) * # : ; ~``, as PETAL's released code cleans questions."""
    return " ".join(text.lower().translate(_DROPPED).split()[:MOST_WORDS])


def plain_caption(text: str) -> str:
    """The same of a caption, where each of these marks becomes a space."""
    return " ".join(text.lower().translate(_SPACED).split()[:MOST_WORDS])


class InstructTask(Task):
    """A :class:`petx.data.task.Task` whose items are InstructBLIP's: one or several instructions per image.

    Args:
        tokenizers: :class:`Tokenizers`.
        templates: instructions with ``{q}`` where the example's text goes. The Q-Former reads each; the language model
            reads the first.
        language_template: what the language model reads in place of the first, with ``{q}`` or without.
        clean: whether instructions are made :func:`plain`.
        lemmatize: whether generated texts are scored and written with lemmas (:mod:`petx.data.lemmas`).
    """

    def __init__(
        self,
        name: str,
        examples: list,
        features: Any,
        tokenizers: Any,
        *,
        templates: Any,
        language_template: str | None = None,
        clean: bool = False,
        lemmatize: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(name, examples, features, tokenizers.text, **options)
        self.tokenizers, self.templates, self.clean = tokenizers, tuple(templates), clean
        self.language_template, self.lemmatize = language_template, lemmatize

    def item_of(self, key: Any, look: Callable[[Any], tuple]) -> dict[str, Any]:
        example, answer, score, draw = self.drawn(key)
        return self.item(self.pixels(example, draw), example.text, answer, score)

    def pixels(self, example: Any, draw: str) -> torch.Tensor:
        """The pixels or features of the one image of ``example``, augmented by ``draw`` if the store does that."""
        (image,) = example.images
        return (self.features(image, draw) if isinstance(self.features, ImageFiles) else self.features(image))[0]

    def item(self, pixels: torch.Tensor, text: str, answer: Any = "", score: float = 1.0) -> dict[str, Any]:
        templates = (self.language_template or self.templates[0], *self.templates)
        texts = [instruction(template, text) for template in templates]
        texts = [plain(each) for each in texts] if self.clean else texts
        read = {}
        if self.tokenizers.qformer is not None:
            qformer = self.tokenizers.qformer
            read["qformer_input_ids"] = [self.encode(each, self.max_text, qformer) for each in texts[1:]]
        return read | {
            "pixel_values": pixels,
            "input_ids": self.encode(texts[0], self.max_text, self.tokenizers.text),
            "labels": self.encode(answer, self.max_target, None),
            "weight": score,
            "loss": self.loss,
        }

    def finished(self, text: str) -> str:
        plain_text = super().finished(text)
        return lemmatized(plain_text) if self.lemmatize else plain_text

    def _encode(self, text: str, limit: int | None = None, tokenizer: Any = None) -> torch.Tensor:
        if tokenizer is not None:  # an instruction: what is too long loses its beginning
            tokens = tokenizer(text)["input_ids"]
            return torch.tensor(tokens[-limit:] if limit else tokens, dtype=torch.long)
        tokens = self.tokenizers.text(text, add_special_tokens=False)["input_ids"]
        kept = tokens if limit is None else tokens[: limit - 1]
        return torch.tensor([*kept, self.tokenizers.text.eos_token_id], dtype=torch.long)
