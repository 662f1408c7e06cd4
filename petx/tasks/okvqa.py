"""OK-VQA: LAVIS's files or the official ones below ``okvqa/annotations/``; images are COCO's of 2014.

LAVIS: ``okvqa_train.json`` for the split train, ``vqa_val_eval.json`` for test and val, of ``{question_id, question,
answer: [10 texts], image}``; the answers that are scored come from ``mscoco_val2014_annotations.json`` if it is there.
Official: ``OpenEnded_mscoco_<split>_questions.json``, ``mscoco_<split>_annotations.json``, split train2014 or val2014.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petx.data.examples import Example
from petx.data.predictions import JsonList
from petx.data.rows import answered, json_rows
from petx.tasks import _answers
from petx.tasks.base import TaskSpec

_FILES = {"train": "okvqa_train", "val": "vqa_val_eval", "test": "vqa_val_eval"}


def _read(folder: Path, split: str, training: bool, tokenizer: Any) -> Iterator[Example]:
    folder = folder / "okvqa" / "annotations"
    if _answers.questions_file(folder, "", split).is_file():
        yield from _answers.official(folder, "", split, training)
        return
    rows = json_rows(folder / f"{_FILES.get(split, split)}.json", "question_id", "question", "image")
    told, file = answered(rows, "answer", training=training), _answers.annotations_file(folder, "", "val2014")
    known = _answers.annotations(file) if not training and file.is_file() else None
    for row in rows:
        if known is not None:
            given = _answers.texts(_answers.annotation_of(row, known, str(file)), "answers")
        else:
            given = _answers.texts(row, "answer") if told else ()
        answers = _answers.counted(given)
        yield Example(row.question("question"), (row.name("image"),), answers, given, id=row["question_id"])


TASK = TaskSpec(
    "okvqa",
    "OK-VQA: questions that need knowledge, soft accuracy over ten answers",
    read=_read,
    prompt="vqa: ",
    max_target=10,
    metric="vqa",
    predictions=JsonList(),
    images=("coco/images",),
    features=("COCO/clip_features/data_clip_RN101_att",),
    files={
        "okvqa/annotations/okvqa_<split>.json": "<split>",
        "okvqa/annotations/vqa_val_eval.json": "val",
        "okvqa/annotations/OpenEnded_mscoco_<split>_questions.json": "<split>",
    },
)
