"""Captions of Flickr30k: LAVIS's ``flickr30k/annotations/<split>.json`` of ``{image, caption, image_id}``, caption a
text or a list of texts, or Karpathy's ``flickr30k/annotations/dataset_flickr30k.json``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petx.data.examples import Example
from petx.data.rows import json_rows
from petx.tasks import _captions
from petx.tasks.base import TaskSpec


def _read(folder: Path, split: str, training: bool, tokenizer: Any) -> Iterator[Example]:
    folder = folder / "flickr30k" / "annotations"
    path, other = folder / f"{split}.json", folder / "dataset_flickr30k.json"
    if not path.is_file() and other.is_file():
        return _captions.karpathy(other, split, training)
    return _captions.of_rows(json_rows(path, "image"), "caption", lambda row: row.name("image"), training)


TASK = TaskSpec(
    "flickr30k",
    "captions of Flickr30k, CIDEr-D",
    read=_read,
    prompt="caption: ",
    max_target=40,
    metric="caption",
    loss="token",
    num_beams=5,
    predictions=_captions.PREDICTIONS,
    images=("flickr30k/images", "flickr30k/images/flickr30k-images"),
    files={
        "flickr30k/annotations/dataset_flickr30k.json": "*",
        "flickr30k/annotations/<split>.json": "<split>",
    },
)
