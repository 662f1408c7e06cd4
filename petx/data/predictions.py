"""Prediction files: a text for every example of a split, in the format that the task's test server or tools read."""

import csv
import difflib
import filecmp
import io
import json
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from petx.data.examples import Example
from petx.data.rows import csv_lines, json_lines, json_object, json_rows
from petx.errors import UserError
from petx.files import written_whole


def ids(examples: list[Example]) -> list[Any]:
    """The rows' ids; the place in the list for a row without one."""
    return [i if example.id is None else example.id for i, example in enumerate(examples)]


class PredictionFile:
    """Plain JSON lines, ``{"id", "image", "question", "answer"}``; the base of the other formats.

    Class attributes: ``suffix`` of its files, ``words`` for listings, ``keyed`` if an id can stand there only once.
    """

    suffix = ".jsonl"
    words = "JSON lines {id, image, question, answer}"
    keyed = False

    def write(self, path: Path, examples: list[Example], texts: list[Any]) -> None:
        """``texts``, one for each of ``examples``, at ``path``, written whole."""
        with written_whole(path) as target:
            target.write_text(self.dump(examples, texts), encoding="utf-8")

    def dump(self, examples: list[Example], texts: list[Any]) -> str:
        """The file's text."""
        rows = zip(ids(examples), examples, texts, strict=True)
        return _lines(
            {"id": name, "image": _image(example), "question": example.text, "answer": text}
            for name, example, text in rows
        )

    def read(self, path: Path) -> list[tuple[str, str]]:
        """``(id, text)`` of each entry; :class:`UserError` names file, entry and field of what cannot be read."""
        return [(row.name("id"), row.text("answer")) for row in json_lines(path, "id", "answer")]

    def matched(self, path: Path, examples: list[Example]) -> list[Any]:
        """The text in ``path`` for each of ``examples``; :class:`UserError` names an id that is missing, or once too
        often. Of examples with one id the first has the first text, as :meth:`write` writes them."""
        found: dict[str, list[Any]] = {}
        for name, text in self.read(path):
            found.setdefault(name, []).append(text)
        wanted = list(map(str, ids(examples)))
        counts = Counter(wanted)
        for name, texts in found.items():
            if len(texts) > max(counts[name], 1):
                asked = f", and the split has {counts[name]} of them" if counts[name] > 1 else ""
                raise UserError(f"{path}: id {name} stands there {_times(len(texts))}{asked}")
        missing = [name for name, count in counts.items() for _ in range(count - len(found.get(name, [])))]
        unknown = sorted(found.keys() - counts.keys())
        if missing or unknown:
            parts = []
            if missing:
                parts.append(f"no prediction for {len(missing)} of {len(wanted)} examples, such as id {missing[0]}")
            if unknown:
                parts.append(f"{len(unknown)} ids that the split has not, such as {unknown[0]}")
            raise UserError(f"{path}: {' and '.join(parts)}")
        rest = {name: iter(texts) for name, texts in found.items()}
        return [next(rest[name]) for name in wanted]

    def check(self, task: str, examples: list[Example]) -> None:
        """Raise :class:`UserError` if an id of ``examples`` cannot be read again, or if two have one and the format has
        room for one."""
        for i, name in enumerate(ids(examples)):
            if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
                raise UserError(f"task {task}: the id of example {i} must be a name or a whole number, got {name!r}")
        if self.keyed:
            name, count = Counter(map(str, ids(examples))).most_common(1)[0]
            if count > 1:
                raise UserError(f"task {task}: {count} examples have id {name}, and its prediction files need one each")


class JsonList(PredictionFile):
    """A JSON list of mappings with an id and a text, as VQA, GQA and LAVIS have it."""

    suffix = ".json"

    def __init__(self, id: str = "question_id", text: str = "answer") -> None:
        self.id, self.text, self.words = id, text, f"JSON [{{{id}, {text}}}]"

    def dump(self, examples: list[Example], texts: list[str]) -> str:
        return _json([{self.id: name, self.text: text} for name, text in zip(ids(examples), texts, strict=True)])

    def read(self, path: Path) -> list[tuple[str, str]]:
        return [(row.name(self.id), row.text(self.text)) for row in json_rows(path, self.id, self.text)]


class JsonMapping(PredictionFile):
    """A-OKVQA's file for its leader board: ``{id: {field: text}}``; a multiple choice is one of the choices."""

    suffix, keyed = ".json", True

    def __init__(self, field: str) -> None:
        self.field, self.words = field, f"JSON {{question_id: {{{field}}}}}"

    def dump(self, examples: list[Example], texts: list[str]) -> str:
        chosen = [chosen_of(text, example.choices) for example, text in zip(examples, texts, strict=True)]
        return _json({str(name): {self.field: text} for name, text in zip(ids(examples), chosen, strict=True)})

    def read(self, path: Path) -> list[tuple[str, str]]:
        found = []
        for name, value in json_object(path).items():
            if not isinstance(value, dict) or not isinstance(value.get(self.field), str):
                raise UserError(f"{path}: entry {name} must be {{{self.field}: text}}, got {value!r}")
            found.append((name, value[self.field]))
        return found


class Nlvr2Csv(PredictionFile):
    """Lines ``identifier,True`` or ``identifier,False``, as NLVR2's evaluation reads them."""

    suffix, words = ".csv", "CSV identifier,True|False"

    def dump(self, examples: list[Example], texts: list[str]) -> str:
        rows = io.StringIO()
        writer = csv.writer(rows, lineterminator="\n")
        writer.writerows((name, text.capitalize()) for name, text in zip(ids(examples), texts, strict=True))
        return rows.getvalue()

    def read(self, path: Path) -> list[tuple[str, str]]:
        found = []
        for number, cells in csv_lines(path):
            if len(cells) != 2 or cells[1].strip().lower() not in ("true", "false"):
                raise UserError(f"{path}: line {number} must be identifier,True or identifier,False, got {cells}")
            found.append((cells[0], cells[1].strip().lower()))
        return found


class ValueAnswers(PredictionFile):
    """VALUE's questions: a JSON mapping from each question's id to the number of the answer; -1 is none of them."""

    suffix, words, keyed = ".json", "JSON {qid: number of the answer}", True

    def dump(self, examples: list[Example], texts: list[str]) -> str:
        numbers = [int(text[1:]) if text[:1] == "a" and text[1:].isdecimal() else -1 for text in texts]
        return _json({str(name): number for name, number in zip(ids(examples), numbers, strict=True)})

    def read(self, path: Path) -> list[tuple[str, str]]:
        found = json_object(path)
        for name, number in found.items():
            if isinstance(number, bool) or not isinstance(number, int):
                raise UserError(f"{path}: entry {name} must be the number of an answer, got {number!r}")
        return [(name, f"a{number}" if number >= 0 else "") for name, number in found.items()]


class ValueCaptions(PredictionFile):
    """VALUE's captions: JSON lines ``{vid_name, clip_id, descs: [{desc}]}``."""

    suffix, words = ".jsonl", "JSON lines {vid_name, clip_id, descs: [{desc}]}"

    def dump(self, examples: list[Example], texts: list[str]) -> str:
        rows = zip(ids(examples), examples, texts, strict=True)
        return _lines(
            {"vid_name": example.images[0][1], "clip_id": name, "descs": [{"desc": text}]}
            for name, example, text in rows
        )

    def read(self, path: Path) -> list[tuple[str, str]]:
        return [(row.name("clip_id"), row.texts("descs", "desc")[0]) for row in json_lines(path, "clip_id", "descs")]


def chosen_of(text: str, choices: tuple[str, ...]) -> str:
    """The one of ``choices`` that is ``text``, or else the most alike; ``text`` itself if there are none."""
    if not choices or text in choices:
        return text
    return max(choices, key=lambda choice: difflib.SequenceMatcher(None, text.lower(), choice.lower()).ratio())


def _times(count: int) -> str:
    return "twice" if count == 2 else f"{count} times"


def path_of(folder: Path, split: str, task: Any) -> Path:
    """The file of ``task`` (:class:`petx.data.task.Task`) for ``split`` in ``folder``."""
    return folder / f"{split}-{task.name}{task.predictions.suffix}"


def write(folder: Path, split: str, tasks: list, texts: dict[str, list[Any]]) -> None:
    """A file for each of ``tasks`` in ``folder``; ``texts``: one for each example, by the task's name."""
    for task in tasks:
        task.predictions.write(path_of(folder, split, task), task.examples, texts[task.name])


def same(folder: Path, split: str, tasks: list, texts: dict[str, list[Any]]) -> bool:
    """Whether :func:`write` would write what lies in ``folder``."""
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch), split, tasks, texts)
        pairs = [(path_of(Path(scratch), split, task), path_of(folder, split, task)) for task in tasks]
        return all(old.is_file() and filecmp.cmp(new, old, shallow=False) for new, old in pairs)


def _image(example: Example) -> Any:
    return example.images[0] if len(example.images) == 1 else list(example.images)


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _json(value: list | dict) -> str:
    """JSON with an entry a line."""
    if isinstance(value, list):
        begin, rows, end = "[", [json.dumps(row, ensure_ascii=False) for row in value], "]"
    else:
        begin, end = "{", "}"
        rows = [json.dumps({key: one}, ensure_ascii=False)[1:-1] for key, one in value.items()]
    return "\n".join([begin, ",\n".join(rows), end]) + "\n"
