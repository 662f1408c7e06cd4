"""NLVR2: ``nlvr/<split>.json``, VL-T5's list of ``{identifier, img0, img1, sent, label}``, label 0 or 1, or the
official JSON lines ``{identifier, sentence, label}``, label "True" or "False", images named by the identifier."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petx.data.examples import Example
from petx.data.predictions import Nlvr2Csv
from petx.data.rows import Row, answered, json_either
from petx.errors import UserError
from petx.tasks.base import TaskSpec


def _read(folder: Path, split: str, training: bool, tokenizer: Any) -> Iterator[Example]:
    rows = json_either(folder / "nlvr" / f"{split}.json")
    told = answered(rows, "label", training=training)
    for row in rows:
        name = next((row.name(field) for field in ("identifier", "uid") if field in row), None)
        sentence = row.question(_one_of(row, "sent", "sentence"))
        answers = (("true" if row.truth("label") else "false", 1.0),) if told else ()
        yield Example(sentence, _images(row, name), answers, id=name, group=_sentence(name) or sentence)


def _one_of(row: Row, first: str, second: str) -> str:
    if first not in row and second not in row:
        raise UserError(f"{row.place} has no {first!r}")
    return first if first in row else second


def _images(row: Row, name: str | None) -> tuple[str, str]:
    if "img0" not in row and "sentence" in row and name is not None:
        pair = name.rpartition("-")[0]
        return f"{pair}-img0", f"{pair}-img1"
    for field in ("img0", "img1"):
        if field not in row:
            raise UserError(f"{row.place} has no {field!r}")
    return row.name("img0"), row.name("img1")


def _sentence(name: str | None) -> str | None:
    """What identifiers ``split-sentence-pair-order`` of one sentence share; None of another kind of name."""
    parts = (name or "").split("-")
    return f"{parts[0]}-{parts[1]}-{parts[3]}" if len(parts) == 4 else None


TASK = TaskSpec(
    "nlvr",
    "NLVR2: a statement about two images, true or false",
    read=_read,
    methods=("vlpet",),
    only="it asks about two images at once, and PETAL's hosts read one",
    prompt="nlvr: ",
    max_target=3,
    metric="nlvr2",
    choices=("false", "true"),
    predictions=Nlvr2Csv(),
    features=("nlvr/clip_features/data_clip_RN101_att",),
    files={"nlvr/<split>.json": "<split>"},
)
