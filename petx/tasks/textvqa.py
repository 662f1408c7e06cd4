"""TextVQA: LAVIS's ``textvqa/<split>.json`` of ``{question_id, question, image, answer: [10 texts]}``, or the official
``textvqa/TextVQA_0.5.1_<split>.json`` with ``data: [{question_id, question, image_id, answers: [10 texts]}]``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petx.data.examples import Example
from petx.data.predictions import JsonList
from petx.data.rows import answered, json_rows
from petx.tasks import _answers
from petx.tasks.base import TaskSpec


def _read(folder: Path, split: str, training: bool, tokenizer: Any) -> Iterator[Example]:
    path, official = folder / "textvqa" / f"{split}.json", folder / "textvqa" / f"TextVQA_0.5.1_{split}.json"
    if not path.is_file() and official.is_file():
        field, image, rows = "answers", "image_id", json_rows(official, "question", "image_id", key="data")
    else:
        field, image, rows = "answer", "image", json_rows(path, "question", "image")
    told = answered(rows, field, training=training)
    for row in rows:
        given = _answers.texts(row, field) if told else ()
        answers = _answers.counted(given)
        yield Example(row.question("question"), (row.name(image),), answers, given, id=row.get("question_id"))


FOLDERS = ("textcaps/images", "textcaps/images/train_images", "textcaps/images/test_images", "textvqa/train_images")
TASK = TaskSpec(
    "textvqa",
    "TextVQA: questions on text in pictures, soft accuracy over ten answers",
    read=_read,
    prompt="vqa: ",
    max_target=10,
    metric="textvqa",
    predictions=JsonList(),
    images=(*FOLDERS, "textvqa/test_images"),
    files={
        "textvqa/TextVQA_0.5.1_<split>.json": "<split>",
        "textvqa/TextVQA_<split>.json": "",
        "textvqa/<split>.json": "<split>",
    },
)
