"""A-OKVQA's multiple choice, in its released files: the choices stand behind the question, the right one is told."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petx.data.examples import Example
from petx.data.predictions import JsonMapping
from petx.data.rows import answered
from petx.tasks import _aokvqa
from petx.tasks.base import TaskSpec


def _read(folder: Path, split: str, training: bool, tokenizer: Any) -> Iterator[Example]:
    rows = _aokvqa.rows(folder, split, "choices")
    told = answered(rows, "correct_choice_idx", training=training)
    for row in rows:
        choices = row.texts("choices")
        right = ((choices[row.number("correct_choice_idx", 0, len(choices) - 1)], 1.0),) if told else ()
        text = f"{row.question('question')} Choices: {', '.join(choices)}"
        images = (_aokvqa.image(row, split),)
        yield Example(text, images, right, id=row.get("question_id"), choices=choices)


TASK = TaskSpec(
    "aokvqa_choice",
    "A-OKVQA's multiple choice in its released files, accuracy",
    read=_read,
    prompt="vqa: ",
    max_target=10,
    metric="choice",
    predictions=JsonMapping("multiple_choice"),
    **_aokvqa.FILES,
)
