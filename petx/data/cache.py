"""The cache folder, and keys made of what a cached value depends on."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from petx.errors import UserError
from petx.files import home, user_path


def cache_dir() -> Path:
    """``$PETX_CACHE``, else ``petx`` under ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if os.environ.get("PETX_CACHE"):
        return user_path(os.environ["PETX_CACHE"], "PETX_CACHE").absolute()
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # the standard has relative ones ignored
        return Path(given) / "petx"
    try:
        return home() / ".cache" / "petx"
    except RuntimeError as error:
        raise UserError(f"there is no home folder for the cache ({error}); set PETX_CACHE to a folder") from error


def fingerprint(*parts: Any) -> str:
    """Hex SHA-256 over ``parts`` (bytes, or anything JSON can write): the key of a value computed from them."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def file_sha256(path: str | os.PathLike) -> str:
    """Hex SHA-256 of the file at ``path``."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
