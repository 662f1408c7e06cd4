"""Reading annotation files, with errors that name file, entry and field."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from petx.errors import UserError


def json_rows(path: Path, *needed: str, key: str | None = None) -> list[dict[str, Any]]:
    """The list in a JSON file, or at ``key`` of it; every entry has the fields ``needed``."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        rows = rows if key is None else rows[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read annotations from {path}: {error!r}") from error
    return _checked(path, rows, needed, lambda i: f"entry {i}")


def json_lines(path: Path, *needed: str) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; every one has the fields ``needed``."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read annotations from {path}: {error!r}") from error
    return _checked(path, rows, needed, lambda i: f"line {i + 1}")


def _checked(path: Path, rows: list, needed: Iterable[str], place: Any) -> list[dict[str, Any]]:
    for i, row in enumerate(rows):
        for name in needed:
            if name not in row:
                raise UserError(f"{path}: {place(i)} has no {name!r}")
    return rows
