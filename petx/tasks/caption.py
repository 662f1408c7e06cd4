"""Captions in Karpathy's ``COCO/dataset_coco.json``: ``images: [{filename, cocoid, split, sentences: [{raw}]}]``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petx.data.examples import Example
from petx.tasks import _captions
from petx.tasks.base import TaskSpec


def _read(folder: Path, split: str, training: bool, tokenizer: Any) -> Iterator[Example]:
    return _captions.karpathy(folder / "COCO" / "dataset_coco.json", split, training)


TASK = TaskSpec(
    "caption",
    "captions in Karpathy's COCO file, CIDEr-D",
    read=_read,
    prompt="caption: ",
    max_target=40,
    max_new=19,  # 20 with the decoder's first
    metric="caption",
    loss="token",
    num_beams=5,
    predictions=_captions.PREDICTIONS,
    images=("coco/images",),
    features=("COCO/clip_features/data_clip_RN101_att",),
    files={"COCO/dataset_coco.json": "*"},
)
