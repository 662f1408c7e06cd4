"""Where the features or pixels of an image or video come from: a tensor, h5 or npz files, image files.

Feature files are read one by one, or where ``petx data pack`` put them together (:mod:`petx.data.packed`).
"""

import functools
import math
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from petx.data import packed
from petx.data.augment import augmented
from petx.data.batches import room_for
from petx.data.pictures import check_picture, read_picture
from petx.errors import UserError

_SUFFIXES = ("", ".jpg", ".jpeg", ".png", ".webp", ".JPG", ".JPEG", ".PNG")
PICTURES = _SUFFIXES[1:]  # what is taken for a picture's
_COCO = re.compile(r"COCO_(\w+)_\d{12}")  # images of COCO's first release, in a folder of that name


def folders_of(given: str | None, data_dir: str, known: Sequence[str], usual: str) -> list[Path]:
    """Where to look: in ``given`` alone, or else in ``usual`` and those of ``known`` that are below ``data_dir``."""
    if given:
        return [Path(given)]
    return [Path(data_dir, usual), *(folder for name in known if (folder := Path(data_dir, name)).is_dir())]


def _found(folders: Sequence[Path], names: Sequence[str], suffixes: Sequence[str]) -> Path | None:
    """The first file that is there: the first of ``names`` in any of ``folders`` with any of ``suffixes``, then the
    next, so that a name with its folder is not taken for another picture's that is called alike."""
    paths = (folder / f"{name}{end}" for name in names for end in suffixes for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def _paths(folder: Any) -> list[Path]:
    return [Path(one) for one in folder] if isinstance(folder, list | tuple) else [Path(folder)]


def _check_layout(shape: tuple[int, ...], dtype: np.dtype, path: Path, rows: str, width: int) -> None:
    """Raise :class:`UserError` with the file, the shape and the type unless it is real numbers ``[rows, width]``."""
    wanted = f"wanted [{rows}, {width}] (feature_width)"
    if dtype.kind not in "fiu":
        raise UserError(f"{path}: features are {list(shape)} of {dtype}, not real numbers; {wanted}")
    if len(shape) != 2 or shape[1] != width or not shape[0]:
        last = f", of width {shape[-1]}" if shape else ", one number"
        raise UserError(f"{path}: features are {list(shape)}{last}; {wanted}")


def _features(values: Any, path: Path, rows: str, width: int) -> torch.Tensor:
    """``values`` of a file as float32 ``[rows, width]``; :class:`UserError` names the file, the shape and the type."""
    array = np.asarray(values)
    _check_layout(array.shape, array.dtype, path, rows, width)
    features = torch.from_numpy(array.astype(np.float32))  # of either byte order
    if not torch.isfinite(features).all():
        raise UserError(f"{path}: features have values that are not finite")
    return features


def _npy_layout(archive: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of ``features`` in an opened npz file, by the header alone."""
    with archive.zip.open("features.npy") as file:
        shape, _, dtype = packed.npy_header(file)
    return shape, dtype


class ArrayFeatures:
    """Features of all images in one tensor ``[images, V, F]``, with the boxes ``[V, 4]`` they share."""

    def __init__(self, features: Any, keys: Any, boxes: torch.Tensor) -> None:
        self.features, self.boxes = features, boxes
        self.rows = {key: row for row, key in enumerate(keys)}

    def __call__(self, key: Any) -> tuple:
        return self.features[self.rows[key]], self.boxes


class FeatureFiles:
    """What the two kinds of feature files share: ``self(key)`` gives features ``[tokens, width]`` and boxes
    ``[tokens, 4]``, all zero. The features are those that were packed in the file's folder, if it has them."""

    end: str  # of a file's name
    default_folder: str  # below the data folder
    default_tokens: int

    def __init__(self, folder: Any, width: int, tokens: int) -> None:
        self.folders, self.width, self.tokens = _paths(folder), width, tokens
        self.boxes = torch.zeros(tokens, 4)
        self._packed: dict[Path, packed.Packed | None] = {}

    def places(self, key: Any) -> tuple[list[Path], str]:
        """The folders that may have the file of ``key``, and its name without its end."""
        raise NotImplementedError

    def load(self, path: Path) -> torch.Tensor:
        """The features in the file at ``path``, ``[tokens, width]``; :class:`UserError` if it does not fit."""
        raise NotImplementedError

    def layout(self, path: Path) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and type of the features in the file at ``path``, by its header alone; UserError if it is damaged."""
        raise NotImplementedError

    def look(self, path: Path) -> None:
        """Raise :class:`UserError` if the file at ``path`` is damaged or of another layout, by its header alone."""
        raise NotImplementedError

    def path(self, key: Any) -> Path:
        """The file that the features of ``key`` are read from; one that is not there, if none has them."""
        found = self.packed(key)
        return self._file(key) if found is None else found.path

    def _file(self, key: Any) -> Path:
        folders, name = self.places(key)
        return _found(folders, [name], [self.end]) or folders[0] / f"{name}{self.end}"

    def packed(self, key: Any) -> packed.Packed | None:
        """What was packed with the features of ``key``, in the first folder that has them in any way."""
        folders, name = self.places(key)
        for folder in folders:
            if folder not in self._packed:
                self._packed[folder] = packed.find(folder, self.tokens, self.width)
        if not any(self._packed[folder] for folder in folders):
            return None
        for folder in folders:
            found = self._packed[folder]
            if found is not None and name in found.rows:
                return found
            if (folder / f"{name}{self.end}").is_file():
                return None
        return None

    def check(self, keys: Any) -> None:
        """Raise :class:`UserError` if a file is missing or damaged, or of another layout, or was written after it was
        packed; values are read later."""
        for key in keys:
            path = self.path(key)
            if not path.is_file():
                others = "".join(f", nor in {folder}" for folder in self.places(key)[0][1:])
                raise UserError(f"no feature file {path}{others}")
        for key in keys:
            found = self.packed(key)
            if found is None:
                self.look(self._file(key))
                continue
            file = found.folder / f"{self.places(key)[1]}{self.end}"
            if file.is_file() and file.stat().st_mtime > found.written:
                raise UserError(f"{file} was written after {found.path}: pack that folder again")

    def __call__(self, key: Any) -> tuple:
        return self.together([key])[0][0], self.boxes

    def together(self, keys: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Features ``[len(keys), tokens, width]`` of one batch, and boxes of each; float32, or float16 if all of them
        were packed so.

        In a process that reads for another they are in memory of both, so that handing them over copies nothing.
        """
        found = [self.packed(key) for key in keys]
        dtypes = {torch.float32 if one is None else one.torch_dtype for one in found}
        dtype = torch.float32 if len(dtypes) > 1 else dtypes.pop()
        features = room_for(len(keys), self.tokens, self.width, dtype=dtype)
        packs: dict[packed.Packed, list[tuple[str, torch.Tensor]]] = {}
        for key, pack, row in zip(keys, found, features, strict=True):
            if pack is None:
                row.copy_(self.load(self._file(key)))
            else:
                packs.setdefault(pack, []).append((self.places(key)[1], row))
        for pack, wanted in packs.items():
            pack.read(wanted)
        return features, self.boxes


class H5Features(FeatureFiles):
    """Grid features read from ``<folder>/<image>.h5`` when asked for; larger square grids are max-pooled to ``tokens``.

    ``folder``: one, or several, of which the first that has the file counts. ``image``: its name, or the path of its
    picture, whose name without folder and suffix it is. Boxes are all zero as CLIP grids have none.
    """

    end, default_folder, default_tokens = ".h5", "features", 36

    def __init__(self, folder: Any, width: int, tokens: int) -> None:
        try:
            import h5py  # noqa: F401
        except ImportError as error:
            raise UserError("image-text features are h5 files, read by h5py; get it with: pip install h5py") from error
        super().__init__(folder, width, tokens)

    @staticmethod
    def name(image: str) -> str:
        """``image`` without the folder and the suffix of a picture."""
        last = image.rpartition("/")[2]
        suffix = next((end for end in PICTURES if last.endswith(end)), "")
        return last.removesuffix(suffix)

    def places(self, key: str) -> tuple[list[Path], str]:
        return self.folders, self.name(key)

    def layout(self, path: Path) -> tuple[tuple[int, ...], np.dtype]:
        return self._read(path, lambda data: (data.shape or (), data.dtype))

    def look(self, path: Path) -> None:
        shape, dtype = self.layout(path)
        _check_layout(shape, dtype, path, "V", self.width)
        self._check_pooling(shape[0], path)

    def load(self, path: Path) -> torch.Tensor:
        return self._pooled(_features(self._read(path, lambda data: data[()]), path, "V", self.width), path)

    def _read(self, path: Path, part: Callable[[Any], Any]) -> Any:
        import h5py  # no attribute: a module cannot be sent to a worker process that is not forked

        name = f"{path.name.removesuffix(self.end)}/features"
        try:
            with h5py.File(path, "r") as file:
                found = file[name]
                if not isinstance(found, h5py.Dataset):
                    raise UserError(f"{path}: {name} must be a data set [V, {self.width}], got a group")
                return part(found)
        except UserError:
            raise
        except Exception as error:  # h5py raises what its filters and types raise
            raise UserError(f"{path}: cannot read {name}: {error}") from error

    def _check_pooling(self, count: int, path: Path) -> None:
        side, wanted = math.isqrt(count), math.isqrt(self.tokens)
        square = side * side == count and wanted * wanted == self.tokens
        if count != self.tokens and not (square and side >= wanted):
            raise UserError(f"{path}: {count} visual tokens cannot be pooled to visual_tokens={self.tokens}")

    def _pooled(self, features: torch.Tensor, path: Path) -> torch.Tensor:
        if len(features) == self.tokens:
            return features
        self._check_pooling(len(features), path)
        side, wanted = math.isqrt(len(features)), math.isqrt(self.tokens)
        grid = features.T.reshape(1, self.width, side, side)
        return torch.nn.functional.adaptive_max_pool2d(grid, wanted).flatten(2)[0].T.contiguous()


class NpzFeatures(FeatureFiles):
    """Frame features brought to ``tokens``: longer videos are max-pooled over time, shorter ones filled with zeros.

    A key is ``(videos, video)``.
    """

    end, default_folder, default_tokens = ".npz", "vis_features", 64

    def places(self, key: Any) -> tuple[list[Path], str]:
        videos, video = key
        return [self.folders[0] / videos / "clip-vit"], video

    def layout(self, path: Path) -> tuple[tuple[int, ...], np.dtype]:
        return self._read(path, _npy_layout)

    def look(self, path: Path) -> None:
        _check_layout(*self.layout(path), path, "T", self.width)

    def _read(self, path: Path, part: Callable[[Any], Any]) -> Any:
        try:
            with np.load(path) as file:
                return part(file)
        except Exception as error:  # numpy raises what zip, zlib and its headers raise
            raise UserError(f"{path}: cannot read features: {error}") from error

    def load(self, path: Path) -> torch.Tensor:
        features = _features(self._read(path, lambda file: file["features"]), path, "T", self.width)
        if len(features) > self.tokens:
            return torch.nn.functional.adaptive_max_pool1d(features.T, self.tokens).T.contiguous()
        return torch.nn.functional.pad(features, (0, 0, 0, self.tokens - len(features)))


class ImageFiles:
    """Pixels of ``<folder>/<image>``, with or without a suffix, as the host's image processor makes them.

    ``folder``: one, or several, of which the first that has the file counts. An image ``part/name`` may also lie there
    as ``name``, and COCO's ``COCO_val2014_…`` as ``val2014/COCO_val2014_…``.
    ``augment``: one of :data:`petx.data.augment.KINDS`, for the keys that come with a draw: :meth:`__call__` with
    ``draw`` gives the same pixels for the same draw.
    """

    def __init__(self, folder: Any, processor: Any, augment: str = "none") -> None:
        self.folders, self.processor, self.augment = _paths(folder), processor, augment

    def path(self, image: str) -> Path:
        last = image.rpartition("/")[2]
        coco = _COCO.match(last)
        names = dict.fromkeys([image, *([f"{coco[1]}/{last}"] if coco else []), last])
        found = _found(self.folders, list(names), _SUFFIXES)
        if found is None:
            others = "".join(f", nor in {folder}" for folder in self.folders[1:])
            wanted = self.folders[0] / image
            raise UserError(f"no image file {wanted}, nor with one of {', '.join(PICTURES)}{others}")
        return found

    def check(self, images: Any) -> None:
        """Raise :class:`UserError` if a file is missing, no image, or cut short."""
        for image in images:
            check_picture(self.path(image))

    def __call__(self, image: str, draw: str = "") -> tuple:
        return self.read(self.path(image), draw)

    def read(self, path: Path, draw: str = "") -> tuple:
        return self.pixels(read_picture(path), draw, path.name)

    def pixels(self, picture: Image.Image, draw: str, name: str) -> tuple:
        """``picture``, augmented as ``draw`` and its ``name`` decide, as the image processor makes it."""
        if draw and self.augment != "none":
            change = random.Random(f"{draw} {name}")
            picture = augmented(picture, self.augment, functools.partial(self.size_read, picture), change)
        return self.processed(picture), None

    def processed(self, picture: Image.Image) -> Any:
        """What the host is given of ``picture``: its pixels."""
        return self.processor(picture, return_tensors="pt")["pixel_values"][0]

    def size_read(self, picture: Image.Image) -> tuple[int, int]:
        """Width and height in which the host reads ``picture``."""
        return self._size

    @functools.cached_property
    def _size(self) -> tuple[int, int]:
        """Width and height of what the processor makes of a square picture."""
        height, width = self.processor(Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"].shape[-2:]
        return width, height
