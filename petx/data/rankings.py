"""Prediction files of retrieval: for every image the captions that fit it best, for every caption the images."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from petx.data.examples import Example
from petx.data.predictions import PredictionFile, ids
from petx.data.rows import Row, json_lines
from petx.errors import UserError

DEPTH = 10  # entries of a ranking that are kept: as far as recall looks


@dataclasses.dataclass(frozen=True)
class Ranking:
    """What a model found for one example, an image (or a video) and its captions; best first, by :func:`names`."""

    captions: tuple[str, ...]  # for the image
    images: tuple[tuple[str, ...], ...]  # for each of its captions


def names(examples: Sequence[Example]) -> tuple[list[str], list[list[str]]]:
    """What rankings call the images and, for each, its captions: ``id``, and ``id#0``, ``id#1`` and so on."""
    images = list(map(str, ids(list(examples))))
    return images, [
        [f"{name}#{i}" for i in range(len(one.references))] for name, one in zip(images, examples, strict=True)
    ]


class RankingFile(PredictionFile):
    """JSON lines ``{image_id, captions: [caption ids]}`` and ``{caption_id, image_ids: [...]}``, best first.

    A caption's id is its image's, ``#`` and its number in the annotation file, from 0. Each list has the 10 best (all,
    if there are fewer), or more.
    """

    words = "JSON lines {image_id, captions} and {caption_id, image_ids}, the 10 best"
    keyed = True

    def dump(self, examples: list[Example], texts: list[Any]) -> str:
        images, captions = names(examples)
        typed = dict(zip(images, ids(examples), strict=True))
        lines: list[dict[str, Any]] = []
        for image, own, ranking in zip(images, captions, texts, strict=True):
            lines.append({"image_id": typed[image], "captions": list(ranking.captions)})
            found = zip(own, ranking.images, strict=True)
            lines += [{"caption_id": name, "image_ids": [typed[one] for one in best]} for name, best in found]
        return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

    def read(self, path: Path) -> list[tuple[str, Any]]:
        """``(id, ranking)`` of each line, of images and captions."""
        return [(name, best) for name, _, best in _read(path)]

    def matched(self, path: Path, examples: list[Example]) -> list[Any]:
        images, captions = names(examples)
        every = [name for own in captions for name in own]
        known: dict[str, dict[str, None]] = {"image_id": dict.fromkeys(images), "caption_id": dict.fromkeys(every)}
        found: dict[str, dict[str, tuple[str, ...]]] = {"image_id": {}, "caption_id": {}}
        for name, row, best in _read(path):
            field, ranked = _FIELDS["image_id" in row]
            if name not in known[field]:
                raise UserError(f"{row.place}: {field} {name} is not in the split")
            if name in found[field]:
                raise UserError(f"{row.place}: {field} {name} stands there twice")
            _check_ranking(row, ranked, best, known["caption_id" if field == "image_id" else "image_id"])
            found[field][name] = best
        for field, there in found.items():
            missing = [name for name in known[field] if name not in there]
            if missing:
                raise UserError(
                    f"{path}: no ranking for {len(missing)} of {len(known[field])} of {field}, such as {missing[0]}"
                )
        pairs = zip(images, captions, strict=True)
        return [Ranking(found["image_id"][i], tuple(found["caption_id"][one] for one in own)) for i, own in pairs]

    def check(self, task: str, examples: list[Example]) -> None:
        bare = next((i for i, example in enumerate(examples) if not example.references), None)
        if bare is not None:
            raise UserError(f"task {task}: example {bare} has no caption, and retrieval ranks captions and images")
        super().check(task, examples)


_FIELDS = {True: ("image_id", "captions"), False: ("caption_id", "image_ids")}


def _read(path: Path) -> list[tuple[str, Row, tuple[str, ...]]]:
    found = []
    for row in json_lines(path):
        both = [field for field, _ in _FIELDS.values() if field in row]
        if len(both) != 1:
            raise UserError(f"{row.place} must have 'image_id' or 'caption_id', got {' and '.join(both) or 'neither'}")
        field, ranked = _FIELDS["image_id" in row]
        if ranked not in row:
            raise UserError(f"{row.place} has no {ranked!r}")
        given = row[ranked]
        if not isinstance(given, list) or any(isinstance(one, bool) or not isinstance(one, str | int) for one in given):
            row.refuse(ranked, "a list of names or numbers, best first", given)
        found.append((row.name(field), row, tuple(map(str, given))))
    return found


def _check_ranking(row: Row, field: str, best: tuple[str, ...], known: dict[str, None]) -> None:
    unknown = next((one for one in best if one not in known), None)
    if unknown is not None:
        raise UserError(f"{row.place}: {field} names {unknown}, which is not in the split")
    if len(set(best)) < len(best):
        raise UserError(f"{row.place}: {field} names one twice")
    wanted = min(DEPTH, len(known))
    if len(best) < wanted:
        raise UserError(f"{row.place}: {field} must name the {wanted} best or more, got {len(best)}")
