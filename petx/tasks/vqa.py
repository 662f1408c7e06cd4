"""VQA v2: VL-T5's rows, ``vqa/<split>.json`` of ``{question_id, img_id, sent, label: {answer: score}, answers}``, or
the official ``vqa/v2_OpenEnded_mscoco_<split>_questions.json`` with ``v2_mscoco_<split>_annotations.json``.

Rows of VL-T5 without ``answers`` take them from the official annotation files of train2014 and val2014.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petx.data.examples import Example
from petx.data.predictions import JsonList
from petx.data.rows import answered, json_rows
from petx.errors import UserError
from petx.tasks import _answers
from petx.tasks.base import TaskSpec

_PREFIX = "v2_"


def _read(folder: Path, split: str, training: bool, tokenizer: Any) -> Iterator[Example]:
    folder = folder / "vqa"
    path = folder / f"{split}.json"
    if not path.is_file() and _answers.questions_file(folder, _PREFIX, split).is_file():
        yield from _answers.official(folder, _PREFIX, split, training)
        return
    rows = json_rows(path, "img_id", "sent")
    if training:
        answered(rows, "label", training=True)
    known = None
    if not training and not answered(rows, "answers", training=False) and answered(rows, "label", training=False):
        files = [_answers.annotations_file(folder, _PREFIX, part) for part in ("train2014", "val2014")]
        known = _answers.annotations(*(file for file in files if file.is_file()))
        if not known:
            raise UserError(f"{rows[0].place} has no 'answers', and {files[1]} is not there to take them from")
    for row in rows:
        note = row if known is None else _answers.annotation_of(row, known, "the official annotation files")
        given = note.texts("answers", "answer", none_allowed=training) if "answers" in note else ()
        labels = tuple(row.scores("label").items()) if "label" in row else ()
        if not labels and (given or training):
            labels = (("", 0.0),)
        kind = str(note.get("answer_type", ""))
        yield Example(row.question("sent"), (row.name("img_id"),), labels, given, kind, id=row.get("question_id"))


TASK = TaskSpec(
    "vqa",
    "VQA v2 and sets in its rows: questions with ten answers, soft accuracy",
    read=_read,
    prompt="vqa: ",
    max_text=20,
    max_target=10,
    max_new=19,  # 20 with the decoder's first
    metric="vqa",
    predictions=JsonList(),
    images=("coco/images",),
    features=("COCO/clip_features/data_clip_RN101_att",),
    files={
        "vqa/v2_OpenEnded_mscoco_<split>_questions.json": "<split>",
        "vqa/v2_mscoco_<split>_annotations.json": "",
        "vqa/trainval_<split>.json": "",
        "vqa/<split>.json": "<split>",
    },
)
