"""Reading annotation files, with errors that name file, entry and field."""

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from petx.errors import UserError

PLACEHOLDER = "<image>"  # where an image stands in a text that was written for a chat model


class Row(dict[str, Any]):
    """One entry of an annotation file: what it says, and where that stands. Methods read a field or refuse it."""

    def __init__(self, values: dict[str, Any], place: str) -> None:
        super().__init__(values)
        self.place = place

    def refuse(self, field: str, wanted: str, value: Any) -> NoReturn:
        text = repr(value)
        raise UserError(f"{self.place}: {field} must be {wanted}, got {text if len(text) <= 80 else text[:77] + '...'}")

    def text(self, field: str) -> str:
        """A text."""
        if not isinstance(self[field], str):
            self.refuse(field, "text", self[field])
        if not is_whole(self[field]):
            self.refuse(field, "text without half of a surrogate pair", self[field])
        return self[field]

    def question(self, field: str) -> str:
        """A text for a model, without the placeholder of the image, which every host puts where it wants it."""
        given = self.text(field)
        asked = given.replace(PLACEHOLDER, "").strip()
        if not asked and PLACEHOLDER in given:
            self.refuse(field, f"a text beside {PLACEHOLDER}", given)
        return asked

    def name(self, field: str) -> str:
        """The name or number of an image or a video."""
        value = self[field]
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "" or not is_whole(str(value)):
            self.refuse(field, "a name or a number", value)
        return str(value)

    def texts(self, field: str, inside: str | None = None, none_allowed: bool = False) -> tuple[str, ...]:
        """A list of texts, or of mappings with a text ``inside``."""
        wanted = "a list of texts" + (f", or of {{{inside}: text}}" if inside else "")
        given = self[field]
        if not isinstance(given, list) or not (given or none_allowed):
            self.refuse(field, wanted, given)
        found: tuple[Any, ...] = tuple(one.get(inside) if inside and isinstance(one, dict) else one for one in given)
        if not all(isinstance(one, str) and is_whole(one) for one in found):
            self.refuse(field, wanted, given)
        return found

    def one_or_texts(self, field: str) -> tuple[str, ...]:
        """A list of texts, or one text by itself."""
        return (self.text(field),) if isinstance(self[field], str) else self.texts(field)

    def scores(self, field: str) -> dict[str, float]:
        """``{answer: score}``, or one answer as a text."""
        given = self[field]
        if isinstance(given, str):
            return {self.text(field): 1.0}
        if not isinstance(given, dict) or not all(map(_is_score, given.values())) or not all(map(is_whole, given)):
            self.refuse(field, "an answer or {answer: score} with scores of at least 0", given)
        return {answer: float(score) for answer, score in given.items()}

    def truth(self, field: str) -> bool:
        """True or false, as JSON or a text has it, or 1 and 0."""
        value = self[field].strip().lower() if isinstance(self[field], str) else self[field]
        known = {"true": True, "false": False, "1": True, "0": False, True: True, False: False}
        if not isinstance(value, str | bool | int) or value not in known:
            self.refuse(field, "true or false, 1 or 0", self[field])
        return known[value]

    def number(self, field: str, least: int, most: int) -> int:
        """A whole number within bounds."""
        value = int(self[field]) if isinstance(self[field], str) and self[field].isdecimal() else self[field]
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.refuse(field, f"a whole number from {least} to {most}", value)
        return value


def is_whole(text: str) -> bool:
    """Whether ``text`` can be written: JSON can hold half of a surrogate pair, and no encoding can."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def json_rows(path: Path, *needed: str, key: str | None = None, name: str | None = None) -> list[Row]:
    """The list in a JSON file, or at ``key`` of it; every entry is a mapping with the fields ``needed``.

    ``name``: the file may also be a mapping of such entries, whose keys become this field.
    """
    rows = _read(path, _parsed)
    if name is not None and isinstance(rows, dict):
        return _named(path, rows, needed, name)
    if key is not None:
        if not isinstance(rows, dict) or key not in rows:
            raise UserError(f"cannot read annotations from {path}: it has no list {key!r}")
        rows = rows[key]
    if not isinstance(rows, list):
        raise UserError(f"cannot read annotations from {path}: wanted a list of entries, got {type(rows).__name__}")
    return _checked(path, rows, needed, lambda i: f"entry {i}")


def _named(path: Path, found: dict[str, Any], needed: Iterable[str], name: str) -> list[Row]:
    keys = list(found)
    rows = _checked(path, list(found.values()), needed, lambda i: f"entry {keys[i]}")
    for key, row in zip(keys, rows, strict=True):
        row.setdefault(name, key)
    return rows


def json_either(path: Path, *needed: str) -> list[Row]:
    """The entries of a JSON list or of JSON lines, whichever the file begins with."""
    begins = _read(path, lambda text: text.lstrip()[:1])
    return json_lines(path, *needed) if begins == "{" else json_rows(path, *needed)


def json_object(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; no key of it, or of what is in it, stands there twice."""
    found = _read(path, _parsed)
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold a mapping, got {type(found).__name__}")
    return found


def _parsed(text: str) -> Any:
    """JSON in which no name of a mapping stands twice: Python's reader would take the last and not say so."""
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"{name!r} stands there twice")
    return found


def csv_lines(path: Path) -> list[tuple[int, list[str]]]:
    """``(number of the line it begins in, cells)`` of each entry of a CSV file that is not empty.

    A cell in quotes may hold line ends, and a text any other separator of Unicode's.
    """

    def parsed(text: str) -> list[tuple[int, list[str]]]:
        reader, found, line = csv.reader(io.StringIO(text), strict=True), [], 1
        try:
            for cells in reader:
                found.append((line, cells))
                line = reader.line_num + 1
        except csv.Error as error:
            raise UserError(f"{path}: line {line} is no CSV: {error}") from error
        return [(number, cells) for number, cells in found if cells]

    return _read(path, parsed)


def csv_rows(path: Path, *needed: str) -> list[Row]:
    """The lines of a CSV file below its header, as mappings; the header has the fields ``needed``."""
    (_, header), *lines = csv_lines(path) or [(1, [])]
    header = [field.strip() for field in header]
    for field in needed:
        if header.count(field) != 1:
            once, got = " once" if field in header else "", ", ".join(header) or "nothing"
            raise UserError(f"{path}: line 1 must be a header with {field!r}{once}, got {got}")
    rows = []
    for number, cells in lines:
        if len(cells) != len(header):
            raise UserError(f"{path}: line {number} has {len(cells)} cells, and the header {len(header)}")
        rows.append(Row(dict(zip(header, cells, strict=True)), f"{path}: line {number}"))
    if not rows:
        raise UserError(f"{path}: there is no line below the header")
    return rows


def answered(rows: list[Row], *fields: str, training: bool) -> bool:
    """Whether ``rows`` tell the answers: all of them have ``fields``, or none has, as in a test split.

    Raises :class:`UserError` naming the first row that lacks what others have, or what training needs.
    """
    have = [all(field in row for field in fields) for row in rows]
    if all(have):
        return True
    if training or any(have):
        row = rows[have.index(False)]
        (field, *_) = [field for field in fields if field not in row]
        some = "" if training else ", and other entries have"
        raise UserError(f"{row.place} has no {field!r}{some}")
    return False


def json_lines(path: Path, *needed: str) -> list[Row]:
    """The objects of a file of JSON lines; every one has the fields ``needed``."""
    places, rows = [], []
    for number, line in enumerate(_read(path, lambda text: text.split("\n")), 1):  # a text may hold other line ends
        if line.strip():
            try:
                rows.append(_parsed(line))
            except (ValueError, RecursionError) as error:
                raise UserError(f"cannot read annotations from {path}: line {number}: {error}") from error
            places.append(number)
    return _checked(path, rows, needed, lambda i: f"line {places[i]}")


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    """The file's text, UTF-8 with or without a byte-order mark, parsed."""
    try:
        return parse(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read annotations from {path}: it is not UTF-8 ({error}); save it as UTF-8") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read annotations from {path}: {error!r}") from error


def _checked(path: Path, rows: list, needed: Iterable[str], place: Any) -> list[Row]:
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{path}: {place(i)} must be a mapping, got {type(row).__name__}")
        for name in needed:
            if name not in row:
                raise UserError(f"{path}: {place(i)} has no {name!r}")
    return [Row(row, f"{path}: {place(i)}") for i, row in enumerate(rows)]
