"""What tasks of captions share: trained on every caption of an image, scored once an image against all of them."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from petx.data.examples import Example
from petx.data.predictions import JsonList
from petx.data.rows import Row, answered, json_rows

PREDICTIONS = JsonList("image_id", "caption")


def examples(rows: Iterable[tuple[Any, Any, tuple[str, ...]]], training: bool) -> Iterator[Example]:
    """Of ``(id, image, captions)``; several entries of one image are put together to be scored.

    A caption that two annotators wrote counts twice, as in the COCO tools; a list of captions that every entry of an
    image repeats (TextCaps) counts once.
    """
    if training:
        for name, image, captions in rows:
            for caption in captions:
                yield Example("", (image,), ((caption, 1.0),), references=captions, id=name)
        return
    together: dict[Any, tuple[Any, list[tuple[str, ...]]]] = {}
    for name, image, captions in rows:
        _, found = together.setdefault(image, (name, []))
        if len(captions) == 1 or captions not in found:
            found.append(captions)
    for image, (name, found) in together.items():
        captions = tuple(itertools.chain.from_iterable(found))
        yield Example("", (image,), tuple((one, 1.0) for one in captions[:1]), references=captions, id=name)


def of_rows(rows: list[Row], field: str, image: Callable[[Row], str], training: bool) -> Iterator[Example]:
    """Of entries whose ``field`` is a caption or a list of captions, and whose picture ``image`` tells."""
    told = answered(rows, field, training=training)

    def found() -> Iterator[tuple[Any, str, tuple[str, ...]]]:
        for row in rows:
            name = image(row)
            yield row.get("image_id", Path(name).stem), name, row.one_or_texts(field) if told else ()

    return examples(found(), training)


def karpathy(path: Path, split: str, training: bool) -> Iterator[Example]:
    """Karpathy's file, ``images: [{filename, cocoid, split, sentences: [{raw}]}]``."""
    rows = [row for row in json_rows(path, "filename", "split", key="images") if row["split"] == split]
    told = answered(rows, "sentences", training=training)

    def found() -> Iterator[tuple[Any, str, tuple[str, ...]]]:
        for row in rows:
            image = Path(row.text("filename")).stem
            captions = tuple(text.strip() for text in row.texts("sentences", "raw")) if told else ()
            yield row.get("cocoid", image), image, captions

    return examples(found(), training)
