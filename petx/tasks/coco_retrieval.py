"""Retrieval of COCO's images and captions: LAVIS's ``coco/annotations/coco_karpathy_<split>.json`` of ``{image,
caption}``, caption a text or a list of texts, or Karpathy's ``COCO/dataset_coco.json``."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petx.data.examples import Example
from petx.data.rows import json_rows
from petx.tasks import _captions, caption
from petx.tasks._retrieval import SHARED

_FILES = {"coco/annotations/coco_karpathy_<split>.json": "<split>", "COCO/dataset_coco.json": "*"}


def _read(folder: Path, split: str, training: bool, tokenizer: Any) -> Iterator[Example]:
    path, other = folder / "coco" / "annotations" / f"coco_karpathy_{split}.json", folder / "COCO" / "dataset_coco.json"
    if not path.is_file() and other.is_file():
        return _captions.karpathy(other, split, training)
    return _captions.of_rows(json_rows(path, "image"), "caption", lambda row: row.name("image"), training)


TITLE = "COCO, Karpathy's splits: images and their captions ranked for one another, recall"
TASK = dataclasses.replace(
    caption.TASK, name="coco_retrieval", title=TITLE, read=_read, files=_FILES, max_new=None, **SHARED
)
