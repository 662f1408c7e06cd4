"""Writes the feature files of a folder into one file, as :mod:`petx.data.packed` reads it."""

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from petx.data.packed import DTYPES, FEATURES, NAMES, PACKED
from petx.data.stores import FeatureFiles, H5Features, NpzFeatures
from petx.errors import UserError
from petx.files import write_json, written_whole


@dataclasses.dataclass(frozen=True)
class Done:
    """What was packed: the file, its bytes, how many files it holds and the shape of each."""

    path: Path
    size: int
    files: int
    tokens: int
    width: int


def pack(folder: Path, *, visual_tokens: int | None, dtype: str) -> Done:
    """Pack the feature files in ``folder``, brought to ``visual_tokens`` as training brings them.

    Raises :class:`UserError` if there are none, one does not fit, or the disk has no room for them.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype must be {' or '.join(DTYPES)}, got {dtype!r}")
    if visual_tokens is not None and visual_tokens < 1:
        raise UserError(f"--visual_tokens must be at least 1, got {visual_tokens}")
    if not folder.is_dir():
        raise UserError(f"PATH must be the folder of the feature files, got {str(folder)!r}")
    kinds: list[type[FeatureFiles]] = [H5Features, NpzFeatures]
    found = {kind: sorted(folder.glob(f"*{kind.end}")) for kind in kinds}
    present = [kind for kind in kinds if found[kind]]
    if len(present) != 1:
        there = "files of both" if present else "none"
        raise UserError(f"{folder} must hold feature files that end in .h5 or .npz, got {there}")
    (kind,) = present
    files = found[kind]
    tokens = visual_tokens or kind.default_tokens
    first, _ = kind(folder, 1, tokens).layout(files[0])
    width = first[-1] if first else 1
    store = kind(folder, width, tokens)
    shape = (len(files), tokens, width)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = shutil.disk_usage(folder).free
    if size > room:
        raise UserError(f"{folder}: packed, its features take {size:,} bytes, and the disk has room for {room:,}")
    for file in files:  # before the long part
        store.look(file)
    before = _times(files)
    header: dict[str, Any] = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype))}
    header |= {"fortran_order": False, "shape": shape}
    with written_whole(folder / PACKED) as target:
        target.mkdir()
        write_json(target / NAMES, {"names": [file.name.removesuffix(kind.end) for file in files]})
        with open(target / FEATURES, "wb") as packed:
            np.lib.format.write_array_header_1_0(packed, header)
            for file in tqdm(files, unit="file", disable=None):
                packed.write(_bytes(store.load(file), file, dtype))
        if changed := [file for file, time in _times(files).items() if time != before[file]]:
            raise UserError(f"{changed[0]} was changed while it was packed; nothing was kept")
    return Done(folder / PACKED / FEATURES, size, *shape)


def _times(files: list[Path]) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns if file.exists() else 0 for file in files}


def _bytes(features: torch.Tensor, file: Path, dtype: str) -> bytes:
    most = float(np.finfo(dtype).max)
    if features.abs().max() > most:
        raise UserError(f"{file}: features are up to {features.abs().max():g}, and {dtype} ends at {most:g}")
    return features.numpy().astype(dtype).tobytes()
