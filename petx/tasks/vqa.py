"""VQA v2 in VL-T5's rows: ``vqa/<split>.json`` of ``{img_id, sent, label: {answer: score}, answers: [{answer}]}``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petx.data.examples import Example
from petx.data.rows import json_rows
from petx.tasks.base import TaskSpec


def _read(folder: Path, split: str, training: bool, tokenizer: Any) -> Iterator[Example]:
    path = folder / "vqa" / f"{split}.json"
    for row in json_rows(path, "img_id", "sent", *(["label"] if training else ["answers"])):
        annotators = row.texts("answers", "answer", none_allowed=training) if "answers" in row else ()
        labels = tuple(row.scores("label").items()) if "label" in row else ()
        yield Example(row.question("sent"), (row.name("img_id"),), labels or (("", 0.0),), references=annotators)


TASK = TaskSpec(
    "vqa",
    "VQA v2 and sets in its rows: questions with ten answers, soft accuracy",
    read=_read,
    prompt="vqa: ",
    max_text=20,
    max_target=10,
    metric="vqa",
)
