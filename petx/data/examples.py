"""One example of a task."""

import dataclasses
import random
from typing import Any

from petx.errors import UserError


@dataclasses.dataclass(frozen=True)
class Example:
    text: str  # what the encoder reads, prompt included
    images: tuple  # keys of the feature store, in order
    answers: tuple  # (answer, score) pairs; training samples one in proportion to its score
    references: tuple = ()  # annotators' answers or reference captions, if the metric wants them
    kind: str = ""  # questions of one kind are also scored apart
    id: Any = None  # of its row, as the file has it; prediction files name it
    choices: tuple = ()  # texts of which one is the answer, if the task gives them
    group: str = ""  # examples of one group are right together or not at all, for a metric of consistency

    @property
    def answered(self) -> bool:
        """Whether its answer is known; those of a test split are often withheld."""
        return bool(self.answers or self.references)


def sampled_answer(answers: tuple[tuple[str, float], ...], seed: str) -> tuple[str, float]:
    """One of ``answers`` with its score, drawn in proportion to the scores; the same for the same ``seed``."""
    if len(answers) == 1:
        return answers[0]
    total = sum(score for _, score in answers)
    if total <= 0:  # no answer was agreed on, or none is known: the example carries no loss
        return "", 0.0
    return random.Random(seed).choices(answers, [score for _, score in answers])[0]


def drawn(examples: list[Example], count: int | None, seed: int, task: str) -> list[Example]:
    """``count`` of ``examples``, in their order, drawn by ``seed``; fewer are among more. All of them for None.

    Raises :class:`UserError` naming ``task`` if there are not as many.
    """
    if count is None:
        return examples
    if count > len(examples):
        raise UserError(f"few_shot must be at most the {len(examples):,} examples of task {task}, got {count:,}")
    order = list(range(len(examples)))
    random.Random(f"few-shot {seed} {task}").shuffle(order)
    return [examples[i] for i in sorted(order[:count])]
