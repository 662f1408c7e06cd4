"""TVQA, How2QA, TVC and YC2C from JSON lines and one npz feature file per video, as VL-PET reads them.

Layout below the data folder: ``ann/<task>/<task>_<split>.jsonl``, ``ann/{tv,how2,yc2}_subtitles.jsonl`` and
``vis_features/{tv,how2,yc2}/clip-vit/<video>.npz`` holding ``features``, ``[T, F]``.

The text is the released one: every subtitle line of the video, ``ts`` as it stands in the file, and all of it cut at
its end, so that very long subtitles lose the question.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petx.data.examples import Example
from petx.data.predictions import ValueAnswers, ValueCaptions
from petx.data.rows import Row, answered, json_lines
from petx.data.stores import NpzFeatures
from petx.tasks.base import TaskSpec

MAX_TEXT, MAX_ANSWER = 600, 20  # tokens
_SHARED: dict[str, Any] = dict(data="video-text", methods=("vlpet",), store=NpzFeatures, num_beams=5)
_SHARED |= dict(max_text=MAX_TEXT, max_target=MAX_ANSWER, max_new=MAX_ANSWER - 1)  # with the decoder's first
_SHARED |= dict(only="videos come as frame features, and PETAL's hosts read the pixels of one image")


def questions(name: str, title: str, videos: str) -> TaskSpec:
    """A task of questions with up to five choices; ``videos``: whose features and subtitles it uses."""

    def read(folder: Path, split: str, training: bool, tokenizer: Any) -> Iterator[Example]:
        rows, said = _clips(folder, name, split, videos, "vid_name", "q", "ts", "a0")
        told = answered(rows, "answer_idx", training=training)
        for row in rows:
            choices = [key for key in ("a0", "a1", "a2", "a3", "a4") if key in row]
            listed = " ".join(f"{key}: {row.text(key).strip('. ')}." for key in choices)
            video = row.name("vid_name")
            text = f"[Subs] {said.get(video, '')} [Q] {row.text('q').strip()} {_span(row)} [Choices] {listed}"
            answer = ((choices[row.number("answer_idx", 0, len(choices) - 1)], 1.0),) if told else ()
            yield Example(f"{text} {name}: ", ((videos, video),), answer, id=row.get("qid"))

    return TaskSpec(name, title, read=read, predictions=ValueAnswers(), files=_files(name), **_SHARED)


def captions(name: str, title: str, videos: str, spans: bool = True) -> TaskSpec:
    """A task of one or more descriptions per clip; ``spans``: whether the text tells the clip's place in the video."""

    def read(folder: Path, split: str, training: bool, tokenizer: Any) -> Iterator[Example]:
        rows, said = _clips(folder, name, split, videos, "vid_name", *(["ts"] if spans else []))
        told = answered(rows, "descs", training=training)
        for row in rows:
            video = row.name("vid_name")
            text = f"[Subs] {said.get(video, '')} " + (f"{_span(row)} " if spans else "") + f"{name}: "
            described = tuple(text.strip() for text in row.texts("descs", "desc")) if told else ()
            images, clip = ((videos, video),), row.get("clip_id")
            if not training:  # scored once per clip
                yield Example(text, images, tuple((one, 1.0) for one in described[:1]), described, id=clip)
                continue
            for caption in described:
                yield Example(text, images, ((caption, 1.0),), described, id=clip)

    return TaskSpec(
        name, title, read=read, metric="caption", predictions=ValueCaptions(), files=_files(name), **_SHARED
    )


def _files(name: str) -> dict[str, str]:
    return {f"ann/{name}/{name}_<split>.jsonl": "<split>"}


def _clips(folder: Path, name: str, split: str, videos: str, *needed: str) -> tuple[list[Row], dict[str, str]]:
    """The rows of a split, and ``{video: all its subtitle lines}``."""
    rows = json_lines(folder / "ann" / name / f"{name}_{split}.jsonl", *needed)
    return rows, _subtitles(folder / "ann" / f"{videos}_subtitles.jsonl")


def _subtitles(path: Path) -> dict[str, str]:
    """``{video: text}``, none if the file is not there: not every set has subtitles."""
    if not path.is_file():
        return {}
    return {row.name("vid_name"): _lines(row) for row in json_lines(path, "vid_name", "sub")}


def _span(row: Row) -> str:
    """``[TS]`` and when the clip begins and ends, as the file has it: text, or two numbers."""
    try:
        _, _ = map(float, row["ts"].split("-") if isinstance(row["ts"], str) else row["ts"])
    except (TypeError, ValueError):
        row.refuse("ts", "two numbers, [first, last] or 'first-last'", row["ts"])
    return f"[TS] ({row['ts']})"


def _lines(row: Row) -> str:
    try:
        said = [line["text"].strip() for line in row["sub"]]
    except (TypeError, KeyError, AttributeError):
        row.refuse("sub", "a list of {text, start, end}", row["sub"])
    return " ".join(said)
