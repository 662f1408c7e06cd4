"""Files and folders written whole or not at all."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from petx.errors import UserError


@contextlib.contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a scratch path beside ``path`` to write a file or a folder at; on success it becomes ``path`` by renaming.

    Whatever lay at ``path`` stays until then, and stays if writing fails.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        target = scratch / path.name
        yield target
        for written in [target, *target.rglob("*")] if target.is_dir() else [target]:
            if written.is_file():
                with open(written, "rb") as file:
                    os.fsync(file.fileno())
        if path.is_dir() and target.is_dir():  # a folder cannot be renamed over a filled one
            os.replace(path, scratch / "replaced")
        os.replace(target, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """``value`` as indented JSON at ``path``, written whole."""
    with written_whole(path) as target:
        target.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def require_writable(folder: str | os.PathLike, argument: str) -> None:
    """Create ``folder`` and prove that a file can be written there, or raise :class:`UserError` naming ``argument``."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=Path(folder)) as file:
            file.write(b"petx")
    except OSError as error:
        raise UserError(f"{argument}: cannot write in {str(folder)!r}: {error.strerror or error}") from error
