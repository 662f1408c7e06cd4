"""The cache folder, whole-or-nothing writing, and keys made of what a cached value depends on."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from petx.errors import UserError


def cache_dir():
    """``$PETX_CACHE``, else ``petx`` under ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if os.environ.get("PETX_CACHE"):
        return Path(os.environ["PETX_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "petx"


def fingerprint(*parts):
    """Hex SHA-256 over ``parts`` (bytes, or anything JSON can write): the key of a value computed from them."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def file_sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def written_whole(path):
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


def write_json(path, value):
    with written_whole(path) as target:
        target.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def require_writable(folder, argument):
    """Create ``folder`` and prove that a file can be written there, or raise :class:`UserError` naming ``argument``."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"petx")
    except OSError as error:
        raise UserError(f"{argument}: cannot write in {str(folder)!r}: {error.strerror or error}") from error
