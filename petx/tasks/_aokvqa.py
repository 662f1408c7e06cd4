"""A-OKVQA's released files, which its two tasks read: ``aokvqa/annotations/aokvqa_v1p0_<split>.json``.

Rows are ``{question_id, question, image_id or image, choices: [4], correct_choice_idx, direct_answers: [10 texts],
difficult_direct_answer}``, those of test without answers; images are COCO's of 2017. ``image``, if it is there, is a
path below the folder of images (as in LAVIS's copy of the files), otherwise it is
``<split>2017/<image_id with 12 digits>.jpg``, as COCO lays them out.
"""

from pathlib import Path
from typing import Any

from petx.data.rows import Row, json_rows
from petx.errors import UserError

FILES: dict[str, Any] = dict(images=("coco/images",), features=("COCO/clip_features/data_clip_RN101_att",))
FILES |= dict(files={"aokvqa/annotations/aokvqa_v1p0_<split>.json": "<split>"})


def rows(folder: Path, split: str, *needed: str) -> list[Row]:
    """The rows of a split, each with a question and the fields ``needed``."""
    return json_rows(folder / "aokvqa" / "annotations" / f"aokvqa_v1p0_{split}.json", "question", *needed)


def image(row: Row, split: str) -> str:
    """The path of a row's image below the folder of images."""
    if "image" in row:
        return row.name("image")
    if "image_id" in row:
        return f"{split}2017/{row.number('image_id', 0, 10**12 - 1):012d}.jpg"
    raise UserError(f"{row.place} has neither 'image' nor 'image_id'")
