"""Captions in Karpathy's file ``COCO/dataset_coco.json``: ``images: [{filename, split, sentences: [{raw}]}]``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petx.data.examples import Example
from petx.data.rows import json_rows
from petx.tasks.base import TaskSpec


def _read(folder: Path, split: str, training: bool, tokenizer: Any) -> Iterator[Example]:
    for row in json_rows(folder / "COCO" / "dataset_coco.json", "filename", "split", "sentences", key="images"):
        if row["split"] == split:
            images = (Path(row.text("filename")).stem,)
            texts = tuple(text.strip() for text in row.texts("sentences", "raw"))
            for text in texts if training else texts[:1]:  # trained on every sentence, scored once an image
                yield Example("", images, ((text, 1.0),), references=texts)


TASK = TaskSpec(
    "caption",
    "captions in Karpathy's COCO file, CIDEr-D",
    read=_read,
    prompt="caption: ",
    max_target=40,
    metric="caption",
    loss="token",
    num_beams=5,
)
