"""GQA, in one of three layouts, the first that is there.

VL-T5's ``GQA/<split>.json`` of ``{question_id, img_id, sent, label}``, label an answer or ``{answer: score}``; LAVIS's
``gqa/annotations/<split>_balanced_questions.json`` of ``{question_id, image, question, answer}``; and the official
file of that name, a mapping ``{question_id: {imageId, question, answer}}``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petx.data.examples import Example
from petx.data.predictions import JsonList
from petx.data.rows import answered, json_rows
from petx.errors import UserError
from petx.tasks.base import TaskSpec


def _read(folder: Path, split: str, training: bool, tokenizer: Any) -> Iterator[Example]:
    path, other = folder / "GQA" / f"{split}.json", folder / "gqa" / "annotations" / f"{split}_balanced_questions.json"
    if not path.is_file() and other.is_file():
        yield from _balanced(other, training)
        return
    rows = json_rows(path, "img_id", "sent")
    told = answered(rows, "label", training=training)
    for row in rows:
        label = row.scores("label") if told else {}
        if told and not label:
            row.refuse("label", "an answer or {answer: score} with an answer", row["label"])
        best = ((max(label, key=lambda one: label[one]), 1.0),) if told else ()
        yield Example(row.question("sent"), (row.name("img_id"),), best, id=row.get("question_id"))


def _balanced(path: Path, training: bool) -> Iterator[Example]:
    rows = json_rows(path, "question", name="question_id")
    told = answered(rows, "answer", training=training)
    for row in rows:
        field = next((one for one in ("image", "imageId") if one in row), None)
        if field is None:
            raise UserError(f"{row.place} has neither 'image' nor 'imageId'")
        answer = ((row.text("answer"), 1.0),) if told else ()
        yield Example(row.question("question"), (row.name(field),), answer, id=row.get("question_id"))


TASK = TaskSpec(
    "gqa",
    "GQA: questions with one answer, exact match",
    read=_read,
    prompt="gpa: ",  # the released code's spelling, kept so that its checkpoints read the same text
    max_text=20,
    max_target=10,
    max_new=19,  # 20 with the decoder's first
    metric="gqa",
    predictions=JsonList("questionId", "prediction"),
    images=("gqa/images",),
    features=("VG/clip_features/data_clip_RN101_att", "GQA/clip_features/data_clip_RN101_att"),
    files={
        "GQA/trainval_<split>.json": "",
        "GQA/<split>.json": "<split>",
        "gqa/annotations/<split>_balanced_questions.json": "<split>",
    },
)
