"""Checkpoints of the trainable tensors only: written whole or not at all, and read back exactly."""

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from petx import certify
from petx.errors import UserError

TENSORS = "trainable.safetensors"
MARKER = "whole.json"  # names every file of the folder with its size; written last


def trainable_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """``{name: tensor}`` of the parameters that are trained; tied ones once."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_trainable(model: nn.Module, folder: str | Path) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_tensors(trainable_state(model), Path(folder, TENSORS))


def load_trainable(model: nn.Module, folder: str | Path) -> None:
    """Copy the tensors saved in ``folder`` into ``model``; :class:`UserError` if names or shapes differ."""
    load_tensors(trainable_state(model), Path(folder, TENSORS), "not trained here")


def save_tensors(tensors: dict[str, torch.Tensor], file: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


@torch.no_grad()
def load_tensors(wanted: dict[str, torch.Tensor], file: Path, unknown: str) -> None:
    """Copy what is in ``file`` into the tensors ``wanted``; :class:`UserError` if names or shapes differ. ``unknown``:
    what it says of a name that is in the file alone."""
    try:
        with open(file, "rb"):  # safetensors calls a file that may not be read missing
            saved = load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{file} is damaged or cannot be read: {error}") from error
    for name in sorted(saved.keys() ^ wanted.keys()):
        raise UserError(f"{file}: {name} is {unknown if name in saved else 'missing'}")
    for name, tensor in wanted.items():
        if saved[name].shape != tensor.shape:
            raise UserError(f"{file}: {name} is {list(saved[name].shape)}, wanted {list(tensor.shape)}")
        tensor.copy_(saved[name])


def mark_whole(folder: str | Path, seconds: float) -> None:
    """Write the marker that says ``folder`` is finished, with the wall time the training took so far and the path,
    kernel or reference, that each operation takes."""
    files = [file for file in sorted(Path(folder).rglob("*")) if file.is_file()]
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in files}
    values = {"seconds": seconds, "paths": certify.record(), "sizes": sizes}
    Path(folder, MARKER).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def seconds(folder: str | Path) -> float:
    return json.loads(Path(folder, MARKER).read_text(encoding="utf-8"))["seconds"]


def other_paths(folder: str | Path) -> list[str]:
    """Which operations take another path now than when ``folder`` was written, in words."""
    return certify.differences(json.loads(Path(folder, MARKER).read_text(encoding="utf-8")).get("paths", {}))


def is_whole(folder: str | Path) -> bool:
    """Whether ``folder`` has its marker and every file is there with the size it was written with."""
    try:
        marker = json.loads(Path(folder, MARKER).read_text(encoding="utf-8"))
        whole = isinstance(marker["seconds"], int | float) and isinstance(marker.get("paths", {}), dict)
        return whole and all(Path(folder, name).stat().st_size == size for name, size in marker["sizes"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def last_whole(folder: str | Path) -> Path | None:
    """The whole ``checkpoint-N`` folder with the largest N below ``folder``, or None."""
    found = [path for path in Path(folder).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    whole = [path for path in found if is_whole(path)]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def remove_others(folder: str | Path, kept: Path) -> None:
    """Delete every checkpoint below ``folder`` but ``kept``, and what an interrupted save left."""
    for path in [*Path(folder).glob("checkpoint-*"), *Path(folder).glob(".checkpoint-*")]:
        if path != kept:
            shutil.rmtree(path, ignore_errors=True)
