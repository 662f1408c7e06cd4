"""A-OKVQA's direct answers, in its released files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petx.data.examples import Example
from petx.data.predictions import JsonMapping
from petx.data.rows import answered
from petx.tasks import _answers, _aokvqa
from petx.tasks.base import TaskSpec


def _read(folder: Path, split: str, training: bool, tokenizer: Any) -> Iterator[Example]:
    rows = _aokvqa.rows(folder, split)
    told = answered(rows, "direct_answers", training=training)
    for row in rows:
        given = _answers.texts(row, "direct_answers") if told else ()
        if row.get("difficult_direct_answer") and not training:
            continue  # the set's own evaluation of direct answers leaves these out
        images, answers = (_aokvqa.image(row, split),), _answers.counted(given)
        yield Example(row.question("question"), images, answers, given, id=row.get("question_id"))


TASK = TaskSpec(
    "aokvqa",
    "A-OKVQA's direct answers in its released files, min(matches / 3, 1)",
    read=_read,
    prompt="vqa: ",
    max_target=10,
    metric="matches",
    predictions=JsonMapping("direct_answer"),
    **_aokvqa.FILES,
)
