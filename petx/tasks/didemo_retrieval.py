"""Retrieval of DiDeMo's videos and paragraphs, a video's descriptions one after the other, as others do it: JSON lines
``didemo/<split>.jsonl`` of ``{clip_name, caption}``, caption a text or a list of its sentences, as ALPRO and Aurora
read them, or the official ``didemo/<split>_data.json`` of ``{video, description}``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petx.data.examples import Example
from petx.data.rows import json_lines, json_rows
from petx.tasks import _retrieval


def _read(folder: Path, split: str, training: bool, tokenizer: Any) -> Iterator[Example]:
    folder = folder / "didemo"
    path, official = folder / f"{split}.jsonl", folder / f"{split}_data.json"
    if not path.is_file() and official.is_file():
        rows, video, said = json_rows(official, "video", "description"), "video", "description"
    else:
        rows, video, said = json_lines(path, "clip_name", "caption"), "clip_name", "caption"
    paragraphs: dict[str, list[str]] = {}
    for row in rows:
        paragraphs.setdefault(row.name(video), []).extend(text.strip() for text in row.one_or_texts(said))
    return _retrieval.videos("didemo", ((name, " ".join(texts)) for name, texts in paragraphs.items()), training)


TASK = _retrieval.of_videos(
    "didemo_retrieval",
    "DiDeMo: videos and paragraphs of their descriptions ranked for one another, recall",
    _read,
    {"didemo/<split>_data.json": "<split>", "didemo/<split>.jsonl": "<split>"},
    max_text=100,
)
