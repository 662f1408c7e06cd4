"""A-OKVQA's direct answers, in its released files: ``aokvqa/annotations/aokvqa_v1p0_<split>.json``.

Rows are ``{question, image_id or image, direct_answers: [10 texts], difficult_direct_answer}``; images are COCO's of
2017. ``image``, if it is there, is a path below the folder of images (as in LAVIS's copy of the files), otherwise it
is ``<split>2017/<image_id with 12 digits>.jpg``, as COCO lays them out.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petx.data.examples import Example
from petx.data.rows import json_rows
from petx.errors import UserError
from petx.tasks.base import TaskSpec


def _read(folder: Path, split: str, training: bool, tokenizer: Any) -> Iterator[Example]:
    path = folder / "aokvqa" / "annotations" / f"aokvqa_v1p0_{split}.json"
    for row in json_rows(path, "question", "direct_answers"):
        if not row["direct_answers"]:
            raise UserError(f"{row.place} has no answer in 'direct_answers'")
        given = row.texts("direct_answers")
        if row.get("difficult_direct_answer") and not training:
            continue  # the set's own evaluation of direct answers leaves these out
        if "image" in row:
            image = row.name("image")
        elif "image_id" in row:
            image = f"{split}2017/{row.number('image_id', 0, 10**12 - 1):012d}.jpg"
        else:
            raise UserError(f"{row.place} has neither 'image' nor 'image_id'")
        counted = Counter(given)
        answers = tuple((answer, count / len(given)) for answer, count in counted.items())
        yield Example(row.question("question"), (image,), answers, references=given)


TASK = TaskSpec(
    "aokvqa",
    "A-OKVQA's direct answers in its released files, min(matches / 3, 1)",
    read=_read,
    methods=("petal",),  # image files
    max_target=10,
    metric="matches",
)
