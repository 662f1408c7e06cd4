"""Retrieval of MSR-VTT's videos and captions: JSON lines ``msrvtt/<split>.jsonl`` of ``{clip_name, caption}``, as ALPRO
and Aurora read them, or the official ``msrvtt/MSRVTT_data.json`` with the list of a split's videos.

The list is ``msrvtt/MSRVTT_<split>.csv`` (splits ``train.9k``, ``train.7k`` and ``JSFUSION_test``) with a column
``video_id``, and ``sentence`` where a video is asked for by that one sentence; without it a video has every caption of
``sentences: [{video_id, caption}]``.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petx.data.examples import Example
from petx.data.rows import csv_rows, json_lines, json_rows
from petx.errors import UserError
from petx.tasks import _retrieval


def _read(folder: Path, split: str, training: bool, tokenizer: Any) -> Iterator[Example]:
    folder = folder / "msrvtt"
    path, listed = folder / f"{split}.jsonl", folder / f"MSRVTT_{split}.csv"
    if not path.is_file() and listed.is_file():
        return _retrieval.videos("msrvtt", _official(listed, folder / "MSRVTT_data.json"), training)
    rows = json_lines(path, "clip_name", "caption")
    return _retrieval.videos("msrvtt", ((row.name("clip_name"), row.text("caption")) for row in rows), training)


def _official(listed: Path, told: Path) -> Iterator[tuple[str, str]]:
    rows = csv_rows(listed, "video_id")
    if "sentence" in rows[0]:
        yield from ((row.name("video_id"), row.text("sentence")) for row in rows)
        return
    captions: dict[str, list[str]] = defaultdict(list)
    for row in json_rows(told, "video_id", "caption", key="sentences"):
        captions[row.name("video_id")].append(row.text("caption"))
    for row in rows:
        video = row.name("video_id")
        if video not in captions:
            raise UserError(f"{row.place}: video_id {video} has no sentence in {told}")
        yield from ((video, caption) for caption in captions[video])


TASK = _retrieval.of_videos(
    "msrvtt_retrieval",
    "MSR-VTT: videos and their captions ranked for one another, recall",
    _read,
    {"msrvtt/MSRVTT_<split>.csv": "<split>", "msrvtt/<split>.jsonl": "<split>"},
)
