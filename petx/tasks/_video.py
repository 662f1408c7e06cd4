"""TVQA, How2QA, TVC and YC2C from JSON lines and one npz feature file per video, as VL-PET reads them.

Layout below the data folder: ``ann/<task>/<task>_<split>.jsonl``, ``ann/{tv,how2,yc2}_subtitles.jsonl`` and
``vis_features/{tv,how2,yc2}/clip-vit/<video>.npz`` holding ``features``, ``[T, F]``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petx.data.examples import Example
from petx.data.rows import Row, json_lines
from petx.data.stores import NpzFeatures
from petx.tasks.base import TaskSpec

MAX_TEXT, MAX_ANSWER = 600, 20  # tokens
_SHARED: dict[str, Any] = dict(data="video-text", methods=("vlpet",), store=NpzFeatures, max_target=MAX_ANSWER)


def questions(name: str, title: str, videos: str) -> TaskSpec:
    """A task of questions with up to five choices; ``videos``: whose features and subtitles it uses."""

    def read(folder: Path, split: str, training: bool, tokenizer: Any) -> Iterator[Example]:
        for row, said, span in _clips(folder, name, split, videos, "vid_name", "q", "ts", "a0", "answer_idx"):
            choices = [key for key in ("a0", "a1", "a2", "a3", "a4") if key in row]
            listed = " ".join(f"{key}: {row.text(key)}" for key in choices)
            text = f"[Q] {row.text('q')} {span} [Choices] {listed} {name}: "
            answer = choices[row.number("answer_idx", 0, len(choices) - 1)]
            yield Example(_fitted(said, text, tokenizer), ((videos, row.name("vid_name")),), ((answer, 1.0),))

    return TaskSpec(name, title, read=read, **_SHARED)


def captions(name: str, title: str, videos: str) -> TaskSpec:
    """A task of one or more descriptions per clip."""

    def read(folder: Path, split: str, training: bool, tokenizer: Any) -> Iterator[Example]:
        for row, said, span in _clips(folder, name, split, videos, "vid_name", "ts", "descs"):
            text = _fitted(said, f"{span} {name}: ", tokenizer)
            described = tuple(text.strip() for text in row.texts("descs", "desc"))
            for caption in described if training else described[:1]:  # scored once per clip
                yield Example(text, ((videos, row.name("vid_name")),), ((caption, 1.0),), references=described)

    return TaskSpec(name, title, read=read, metric="caption", loss="token", num_beams=5, **_SHARED)


def _clips(folder: Path, name: str, split: str, videos: str, *needed: str) -> Iterator[tuple[Row, str, str]]:
    """The rows of a split, each with the subtitles that overlap its clip and the clip's span in words."""
    subtitles = _subtitles(folder / "ann" / f"{videos}_subtitles.jsonl")
    for row in json_lines(folder / "ann" / name / f"{name}_{split}.jsonl", *needed):
        first, last = _span(row)
        lines = subtitles.get(row["vid_name"], ())
        said = " ".join(text for text, start, end in lines if start <= last and end >= first)
        yield row, said, f"[TS] ({first:.2f}-{last:.2f})"


def _fitted(said: str, rest: str, tokenizer: Any) -> str:
    """``[Subs] said rest`` in at most ``MAX_TEXT`` tokens: what is too long is cut from the end of the subtitles."""
    room = MAX_TEXT - len(tokenizer(f"[Subs] {rest}")["input_ids"])
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    if len(ids) > room:
        said = tokenizer.decode(ids[: max(room, 0)])
    return f"[Subs] {said} {rest}"


def _subtitles(path: Path) -> dict[str, list[tuple[str, float, float]]]:
    """``{video: [(text, start, end)]}``, none if the file is not there: not every set has subtitles."""
    if not path.is_file():
        return {}
    rows = json_lines(path, "vid_name", "sub")
    return {row.name("vid_name"): _lines(row) for row in rows}


def _span(row: Row) -> tuple[float, float]:
    """Seconds in which a clip begins and ends; not a number where the set does not know them."""
    try:
        first, last = map(float, row["ts"].split("-") if isinstance(row["ts"], str) else row["ts"])
    except (TypeError, ValueError):
        row.refuse("ts", "two numbers, [first, last] or 'first-last'", row["ts"])
    return first, last


def _lines(row: Row) -> list[tuple[str, float, float]]:
    try:
        return [(str(line["text"]), float(line["start"]), float(line["end"])) for line in row["sub"]]
    except (TypeError, ValueError, KeyError):
        row.refuse("sub", "a list of {text, start, end}", row["sub"])
