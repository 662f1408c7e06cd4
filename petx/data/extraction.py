"""Features of pictures by any vision model of transformers, in the files that the tasks read.

An image's are its grid of patches, ``OUTPUT/IMAGE.h5`` with ``IMAGE/features [V, F]``; a video's are a vector a frame,
``OUTPUT/VIDEO.npz`` with ``features [T, F]``.
"""

import dataclasses
import importlib.util
import multiprocessing
import os
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from petx._quiet import quiet_transformers
from petx.data.pictures import read_picture
from petx.data.stores import PICTURES, H5Features
from petx.errors import UserError
from petx.files import read_json, write_json, written_whole

NOTE = "petx-features.json"  # in the output folder: what its features were made by
MOST_EXTRA = 16  # tokens in front of a grid: class, distillation, registers


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is computed: of each file in ``output``, named without its end, the pictures it is made of."""

    model: str
    output: Path
    videos: bool
    batch_size: int
    files: dict[str, list[Path]]

    @property
    def end(self) -> str:
        return ".npz" if self.videos else ".h5"

    def missing(self) -> list[str]:
        """Names of the files that are not there yet; they appear whole or not at all."""
        return [name for name in self.files if not (self.output / f"{name}{self.end}").is_file()]


def plan(model: str, pictures: Path, output: Path, *, videos: bool, batch_size: int) -> Plan:
    """What :func:`run` is to do for the pictures below ``pictures``, or, of ``videos``, its folders of frames.

    Raises :class:`UserError` if there are none, if two would write one file, or if ``output`` holds features that were
    made otherwise.
    """
    if not pictures.is_dir():
        raise UserError(f"--{'videos' if videos else 'images'} must be a folder, got {str(pictures)!r}")
    files: dict[str, list[Path]] = {}
    for path in sorted(_below(pictures), key=_in_order):
        if path.suffix not in PICTURES or not path.is_file():
            continue
        if not videos:
            name = H5Features.name(path.name)
            if name in files:
                raise UserError(f"{files[name][0]} and {path} would both write {name}.h5; give them other names")
            files[name] = [path]
        elif path.parent != pictures:
            inside = path.parent.relative_to(pictures)
            if len(inside.parts) > 1:
                raise UserError(f"{path}: frames lie in one folder a video, {pictures}/VIDEO/FRAME, and not deeper")
            files.setdefault(inside.name, []).append(path)
        else:
            raise UserError(f"{path} lies in no video's folder: frames are {pictures}/VIDEO/FRAME")
    if not files:
        raise UserError(f"{pictures} has no picture ({', '.join(PICTURES)})")
    made = {"model": model, "videos": videos}
    if (output / NOTE).is_file():
        before = read_json(output / NOTE, *made, hint="remove the folder to compute its features again")
        for name, value in made.items():
            if before[name] != value:
                raise UserError(f"{output} holds features of {name} {before[name]!r}, not {value!r}; choose another")
    elif output.is_dir() and any(one for end in ("h5", "npz") for one in output.glob(f"*.{end}")):
        raise UserError(f"{output} holds features that petx data features did not make; choose another folder")
    return Plan(model, output, videos, batch_size, files)


def _below(folder: Path) -> Iterator[Path]:
    """All files below ``folder``, in linked folders too, each folder once.

    Raises OSError for one that cannot be read: it would look empty.
    """
    seen = set()

    def refuse(error: OSError) -> None:
        raise error

    for place, inside, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            inside.clear()  # a link to a folder beside or around it
        else:
            seen.add(real)
            inside.sort(key=lambda name: (os.path.islink(os.path.join(place, name)), name))  # links last
            yield from (Path(place, name) for name in files)


def _in_order(path: Path) -> tuple[list[Any], str]:
    """Sorts by name, numbers in it as numbers: frame 2 comes before frame 10."""
    parts = re.split(r"(\d+)", str(path))  # texts and numbers in turn
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], str(path)


def run(todo: Plan, *, processes: int) -> None:
    """Compute what is missing of ``todo`` by ``processes`` at a time, with a progress bar; each has a GPU, if there are
    any."""
    names = todo.missing()
    if not names:
        return
    _begin(todo, torch.get_num_threads())  # here first, so that a wrong model is told before anything is written
    if not (todo.output / NOTE).is_file():
        write_json(todo.output / NOTE, {"model": todo.model, "videos": todo.videos})
    begun = len(todo.files) - len(names)
    with tqdm(total=len(todo.files), initial=begun, unit=todo.end[1:], disable=None) as bar:
        if processes == 1:
            for batch in _batches(todo, names):
                bar.update(_compute(batch))
        else:
            _share(todo, names, processes, bar)


def _share(todo: Plan, names: list[str], processes: int, bar: tqdm) -> None:
    spawn = multiprocessing.get_context("spawn")  # CUDA cannot be used after a fork
    share = max(1, torch.get_num_threads() // processes)
    with ProcessPoolExecutor(processes, spawn, initializer=_begin, initargs=(todo, share)) as pool:
        jobs = [pool.submit(_compute, batch) for batch in _batches(todo, names)]
        try:
            for job in as_completed(jobs):
                bar.update(job.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _batches(todo: Plan, names: list[str]) -> Iterator[list[str]]:
    """Images in batches; a video by itself."""
    size = 1 if todo.videos else todo.batch_size
    return (names[start : start + size] for start in range(0, len(names), size))


class Encoder:
    """A vision model with its image processor.

    ``grids(pictures)`` are ``[B, V, F]``, row by row, without the tokens in front of a grid; ``vectors(pictures)``
    ``[B, F]``: what a two-tower model compares with texts, else the pooled output, else the mean of the grid.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        from transformers import AutoImageProcessor, AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.name = name
        try:
            with quiet_transformers():  # it says that the image processor is the one without torchvision
                self.processor: Any = AutoImageProcessor.from_pretrained(name)
                self.model: Any = AutoModel.from_pretrained(name).eval().requires_grad_(False).to(device)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(f"--model {name!r} is no vision model with an image processor: {error}") from error
        self.tower = getattr(self.model, "vision_model", self.model)
        if self.tower.main_input_name != "pixel_values":
            raise UserError(f"--model {name!r} reads {self.tower.main_input_name}, not pictures")

    def pixels(self, pictures: list[Any]) -> torch.Tensor:
        """``[B, 3, H, W]``."""
        return self.processor(pictures, return_tensors="pt")["pixel_values"].to(self.model.device)

    @torch.inference_mode()
    def grids(self, pictures: list[Any]) -> torch.Tensor:
        pixels = self.pixels(pictures)
        return self._grids(self._hidden(self.tower(pixel_values=pixels)), pixels)

    def _grids(self, hidden: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        if hidden.dim() == 4:  # a convolutional map
            return hidden.flatten(2).transpose(1, 2).float().cpu()
        return hidden[:, self._extra(hidden.shape[1], pixels) :].float().cpu()

    @torch.inference_mode()
    def vectors(self, pictures: list[Any]) -> torch.Tensor:
        pixels = self.pixels(pictures)
        if hasattr(self.model, "get_image_features"):
            found = self.model.get_image_features(pixel_values=pixels)
        else:
            found = self.tower(pixel_values=pixels)
        pooled = found if isinstance(found, torch.Tensor) else getattr(found, "pooler_output", None)
        if pooled is None:  # or there is no such thing, as in Swin's outputs of later stages
            return self._grids(self._hidden(found), pixels).mean(1)
        if not isinstance(pooled, torch.Tensor) or len(pooled) != len(pixels):
            raise UserError(f"--model {self.name!r} gives no one vector for a picture; take --images")
        return pooled.flatten(1).float().cpu()

    def _hidden(self, found: Any) -> torch.Tensor:
        """What is computed for each place of a picture."""
        hidden = getattr(found, "last_hidden_state", None)
        if not isinstance(hidden, torch.Tensor):
            raise UserError(f"--model {self.name!r} gives no features of the places of a picture")
        return hidden

    def _extra(self, tokens: int, pixels: torch.Tensor) -> int:
        """How many of ``tokens`` stand in front of the patches."""
        patch = getattr(self.tower.config, "patch_size", None)
        sides = (patch, patch) if isinstance(patch, int) else patch
        patches = pixels.shape[2] // sides[0] * (pixels.shape[3] // sides[1]) if sides else tokens
        return tokens - patches if 0 <= tokens - patches <= MOST_EXTRA else 0  # others merge patches into fewer


_state: dict[str, Any] = {}  # of the process that computes: its plan and encoder


def _begin(todo: Plan, threads: int) -> None:
    torch.set_num_threads(threads)
    name = multiprocessing.current_process().name.rpartition("-")[2]  # SpawnProcess-1 and on
    cards = torch.cuda.device_count()
    place = int(name) - 1 if name.isdecimal() else 0
    _state.update(plan=todo, encoder=Encoder(todo.model, f"cuda:{place % cards}" if cards else "cpu"))


def _compute(names: list[str]) -> int:
    """Write the features of ``names``; how many files that was."""
    todo, encoder = _state["plan"], _state["encoder"]
    if not todo.videos:
        pictures = [read_picture(todo.files[name][0]) for name in names]
        for name, features in zip(names, encoder.grids(pictures).numpy(), strict=True):
            _write(todo.output / f"{name}.h5", name, features)
        return len(names)
    for name in names:
        frames, size = todo.files[name], todo.batch_size
        parts = [frames[start : start + size] for start in range(0, len(frames), size)]
        vectors = [encoder.vectors([read_picture(frame) for frame in part]).numpy() for part in parts]
        _write(todo.output / f"{name}.npz", name, np.concatenate(vectors))
    return len(names)


def _write(path: Path, name: str, features: np.ndarray) -> None:
    if not np.isfinite(features).all():
        raise UserError(f"{path.name}: the model gave values that are not finite")
    with written_whole(path) as target:
        if path.suffix == ".npz":
            np.savez(target, features=features)
            return
        import h5py

        with h5py.File(target, "w") as file:
            file[f"{name}/features"] = features


def shape(todo: Plan) -> list[int]:
    """``[V, F]`` or ``[T, F]`` of the first file."""
    path = todo.output / f"{next(iter(todo.files))}{todo.end}"
    if todo.videos:
        with np.load(path) as archive:
            return list(archive["features"].shape)
    import h5py

    with h5py.File(path) as file:
        return list(file[f"{path.stem}/features"].shape)


def check_machine(processes: int, videos: bool) -> None:
    """Raise :class:`UserError` if h5py is missing that images need, or there are more ``processes`` than cores."""
    cores = os.cpu_count() or 1
    if not 1 <= processes <= cores:
        raise UserError(f"--processes must be from 1 to {cores}, the cores of this machine; got {processes}")
    if not videos and importlib.util.find_spec("h5py") is None:
        raise UserError("features of images are h5 files, written by h5py; get it with: pip install h5py")
