"""NLVR2: ``nlvr/<split>.json`` of ``{img0, img1, sent, label}``, label 0 or 1, or "True" or "False" as published."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petx.data.examples import Example
from petx.data.rows import json_rows
from petx.tasks.base import TaskSpec


def _read(folder: Path, split: str, training: bool, tokenizer: Any) -> Iterator[Example]:
    for row in json_rows(folder / "nlvr" / f"{split}.json", "img0", "img1", "sent", "label"):
        answer = "true" if row.truth("label") else "false"
        yield Example(row.question("sent"), (row.name("img0"), row.name("img1")), ((answer, 1.0),))


TASK = TaskSpec(
    "nlvr",
    "NLVR2: a statement about two images, true or false",
    read=_read,
    methods=("vlpet",),  # whose hosts read two images
    prompt="nlvr: ",
    max_target=3,
    choices=("false", "true"),
)
