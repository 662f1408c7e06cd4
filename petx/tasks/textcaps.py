"""TextCaps: LAVIS's ``textcaps/annotations/textcaps_<split>.json``, train of ``{image, image_id, caption}`` and val of
``{image_path, image_id, reference_strs}``, or the official ``textcaps/annotations/TextCaps_0.1_<split>.json`` with
``data: [{image_id, caption_str, reference_strs}]``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petx.data.examples import Example
from petx.data.rows import Row, json_rows
from petx.errors import UserError
from petx.tasks import _captions
from petx.tasks.base import TaskSpec
from petx.tasks.textvqa import FOLDERS


def _read(folder: Path, split: str, training: bool, tokenizer: Any) -> Iterator[Example]:
    folder = folder / "textcaps" / "annotations"
    path, official = folder / f"textcaps_{split}.json", folder / f"TextCaps_0.1_{split}.json"
    if not path.is_file() and official.is_file():
        rows = json_rows(official, "image_id", key="data")
    else:
        rows = json_rows(path)
    one = "caption" if rows and "caption" in rows[0] else "caption_str"
    field = one if rows and one in rows[0] and (training or "reference_strs" not in rows[0]) else "reference_strs"
    return _captions.of_rows(rows, field, _image, training)


def _image(row: Row) -> str:
    for field in ("image", "image_path", "image_id"):
        if field in row:
            return row.name(field)
    raise UserError(f"{row.place} has none of 'image', 'image_path' and 'image_id'")


TASK = TaskSpec(
    "textcaps",
    "captions of pictures with text, CIDEr-D",
    read=_read,
    prompt="caption: ",
    max_target=40,
    metric="caption",
    loss="token",
    num_beams=5,
    predictions=_captions.PREDICTIONS,
    images=FOLDERS,
    files={
        "textcaps/annotations/textcaps_<split>.json": "<split>",
        "textcaps/annotations/TextCaps_0.1_<split>.json": "<split>",
    },
)
