"""The feature files of a folder in one file of rows of one size, from which a batch is read without opening the others.

``FOLDER/packed/features.npy`` holds them, ``[files, V, F]`` in float32 or float16, ``FOLDER/packed/names.json`` whose
they are. ``petx data pack`` (:mod:`petx.data.packing`) writes both, whole or not at all; where they lie, they are read
in place of the files, which may be removed.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from petx.errors import UserError
from petx.files import read_json

PACKED, FEATURES, NAMES = "packed", "features.npy", "names.json"
DTYPES = ("float32", "float16")
_AGAIN = "remove that folder, and pack its files again or do without"


class Packed:
    """What was packed in ``folder``; :class:`UserError` if it is damaged, or not ``[tokens, width]`` each.

    It holds no open file, so that it can be sent to other processes.
    """

    def __init__(self, folder: Path, tokens: int, width: int) -> None:
        self.folder, self.path = folder, folder / PACKED / FEATURES
        note = folder / PACKED / NAMES
        names = read_json(note, "names", hint=_AGAIN)["names"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{note}: names must be a list of texts; {_AGAIN}")
        self.rows = {name: row for row, name in enumerate(names)}
        if len(self.rows) < len(names):
            doubled = next(name for row, name in enumerate(names) if self.rows[name] != row)
            raise UserError(f"{note}: names has {doubled!r} twice; {_AGAIN}")
        shape, self.dtype, self.begin = _header(self.path)
        if self.dtype.name not in DTYPES or not self.dtype.isnative or len(shape) != 3 or shape[0] != len(names):
            raise UserError(
                f"{self.path}: wanted [{len(names)}, V, F] of {' or '.join(DTYPES)}, got {list(shape)} of "
                f"{self.dtype}; {_AGAIN}"
            )
        if shape[1:] != (tokens, width):
            raise UserError(
                f"{self.path} was packed with {shape[1]} tokens of width {shape[2]}, wanted [{tokens}, {width}] "
                f"(visual_tokens, feature_width); {_AGAIN}"
            )
        self.size = tokens * width * self.dtype.itemsize
        wanted, there = self.begin + self.size * len(names), self.path.stat().st_size
        if there != wanted:
            raise UserError(f"{self.path} must have {wanted:,} bytes, got {there:,}; {_AGAIN}")
        self.written = self.path.stat().st_mtime

    @property
    def torch_dtype(self) -> torch.dtype:
        return torch.float16 if self.dtype == np.float16 else torch.float32

    def read(self, wanted: Sequence[tuple[str, torch.Tensor]]) -> None:
        """Write the features of each name into the tensor beside it, in the order in which they lie."""
        try:
            file = open(self.path, "rb", buffering=0)
        except OSError as error:
            raise UserError(f"{self.path} could be read at the start and cannot now: {error.strerror}") from error
        with file:
            if os.fstat(file.fileno()).st_mtime != self.written:
                raise UserError(f"{self.path} was written anew while it was in use; start again to read it")
            for row, out in sorted(((self.rows[name], out) for name, out in wanted), key=lambda one: one[0]):
                target: Any = out if out.dtype == self.torch_dtype else torch.empty(out.shape, dtype=self.torch_dtype)
                self._fill(
                    file.fileno(), memoryview(target.numpy().reshape(-1)).cast("B"), self.begin + self.size * row
                )
                if target is not out:
                    out.copy_(target)

    def _fill(self, descriptor: int, target: memoryview, at: int) -> None:
        """Read, not mapped: pages of a mapped file would count as this process's memory."""
        done = 0
        while done < len(target):
            count = os.preadv(descriptor, [target[done:]], at + done)
            if not count:
                raise UserError(f"{self.path} ends early: it was changed while it was read")
            done += count


def npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether values lie column by column, and type of an opened npy file, which is left where they begin."""
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return reader(file)


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape and type of an npy file, and where its values begin."""
    try:
        with open(path, "rb") as file:
            shape, column_first, dtype = npy_header(file)
            if column_first:
                raise ValueError("its values lie column by column")
            return shape, dtype, file.tell()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; {_AGAIN}") from error


def find(folder: Path, tokens: int, width: int) -> Packed | None:
    """What was packed in ``folder``, if anything was."""
    return Packed(folder, tokens, width) if (folder / PACKED).is_dir() else None
