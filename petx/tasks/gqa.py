"""GQA in VL-T5's rows: ``GQA/<split>.json`` of ``{img_id, sent, label}``, label an answer or ``{answer: score}``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petx.data.examples import Example
from petx.data.rows import json_rows
from petx.tasks.base import TaskSpec


def _read(folder: Path, split: str, training: bool, tokenizer: Any) -> Iterator[Example]:
    for row in json_rows(folder / "GQA" / f"{split}.json", "img_id", "sent", "label"):
        label = row.scores("label")
        if not label:
            row.refuse("label", "an answer or {answer: score} with an answer", row["label"])
        yield Example(row.question("sent"), (row.name("img_id"),), ((max(label, key=lambda one: label[one]), 1.0),))


TASK = TaskSpec(
    "gqa",
    "GQA: questions with one answer, exact match",
    read=_read,
    prompt="gpa: ",  # the released code's spelling, kept so that its checkpoints read the same text
    max_text=20,
    max_target=10,
)
