"""The cache folder, and keys made of what a cached value depends on."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def cache_dir() -> Path:
    """``$PETX_CACHE``, else ``petx`` under ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if os.environ.get("PETX_CACHE"):
        return Path(os.environ["PETX_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "petx"


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
