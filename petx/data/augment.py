"""Random changes of a training picture: parts of it, mirrored, and LAVIS's RandAugment, as PETAL's code trains with.

Every function takes a ``random.Random``, so that one draw gives one picture.
"""

import math
import random
from collections.abc import Callable

from PIL import Image, ImageOps

Picture = Image.Image
KINDS = ("none", "crop", "crop-flip", "resized-crop", "randaugment")
AREA, RATIO = (0.5, 1.0), (3 / 4, 4 / 3)  # of a part: its share, and its width to its height
GREY = (128, 128, 128)  # where nothing of the picture comes to lie
OPERATIONS, CHANCE = 2, 0.5  # drawn for a picture, and the chance that one is done
SHEAR, SHIFT, TURN = 0.15, 5.0, 15.0  # at level 5 of 10: of the height, pixels, degrees


def augmented(picture: Picture, kind: str, size: Callable[[], tuple[int, int]], draw: random.Random) -> Picture:
    """``picture`` changed as ``kind`` of :data:`KINDS` says; ``size`` tells the width and height that a host reads."""
    if kind in ("crop", "crop-flip"):
        picture = _crop(picture, draw)
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if kind == "crop-flip" and _half(draw) else picture
    if kind in ("resized-crop", "randaugment"):
        picture = picture.resize(size(), Image.Resampling.BICUBIC, box=part(picture.size, draw))
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if _half(draw) else picture
        return rand_augment(picture, draw) if kind == "randaugment" else picture
    return picture


def _half(draw: random.Random) -> bool:
    return draw.random() < 0.5


def _crop(picture: Picture, draw: random.Random) -> Picture:
    """A part of half to all of the area, near the picture's own form, in the picture's size."""
    width, height = picture.size
    side = draw.uniform(*AREA) ** 0.5
    ratio = draw.uniform(0.75, 1.33) ** 0.5
    w, h = max(1, min(width, round(width * side * ratio))), max(1, min(height, round(height * side / ratio)))
    left, top = draw.randint(0, width - w), draw.randint(0, height - h)
    return picture.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))


def part(size: tuple[int, int], draw: random.Random) -> tuple[int, int, int, int]:
    """The box of a part of a picture of ``size``: its share of the area from :data:`AREA`, its form from :data:`RATIO`,
    evenly on a logarithmic scale; the largest part of such a form in the middle if ten tries do not fit."""
    width, height = size
    for _ in range(10):
        area = width * height * draw.uniform(*AREA)
        ratio = math.exp(draw.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = draw.randint(0, width - w), draw.randint(0, height - h)
            return left, top, left + w, top + h
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def rand_augment(picture: Picture, draw: random.Random) -> Picture:
    """Two of LAVIS's ten operations at level 5 of 10, each done with a chance of a half.

    Brightness and sharpness change by a factor of 1 at that level, which is nothing. Geometry is bilinear.
    """
    for operation in draw.choices(list(_OPERATIONS.values()), k=OPERATIONS):
        if draw.random() <= CHANCE:
            picture = operation(picture, draw)
    return picture


def _unchanged(picture: Picture, draw: random.Random) -> Picture:
    return picture


def _signed(value: float, draw: random.Random) -> float:
    return value if _half(draw) else -value


def shear_x(picture: Picture, factor: float) -> Picture:
    """Row y moves ``factor`` y to the right."""
    return _affine(picture, (1, -factor, 0.5 * factor, 0, 1, 0))  # halves, since Pillow counts from pixels' corners


def shear_y(picture: Picture, factor: float) -> Picture:
    """Column x moves ``factor`` x down."""
    return _affine(picture, (1, 0, 0, -factor, 1, 0.5 * factor))


def _affine(picture: Picture, inverse: tuple[float, ...]) -> Picture:
    return picture.transform(
        picture.size, Image.Transform.AFFINE, inverse, resample=Image.Resampling.BILINEAR, fillcolor=GREY
    )


def _turned(picture: Picture, degrees: float) -> Picture:
    centre = picture.width / 2 + 0.5, picture.height / 2 + 0.5
    return picture.rotate(degrees, resample=Image.Resampling.BILINEAR, center=centre, fillcolor=GREY)


_OPERATIONS: dict[str, Callable[[Picture, random.Random], Picture]] = {
    "identity": _unchanged,
    "auto-contrast": lambda picture, draw: ImageOps.autocontrast(picture),
    "brightness": _unchanged,
    "sharpness": _unchanged,
    "equalize": lambda picture, draw: ImageOps.equalize(picture),
    "shear x": lambda picture, draw: shear_x(picture, _signed(SHEAR, draw)),
    "shear y": lambda picture, draw: shear_y(picture, _signed(SHEAR, draw)),
    "shift x": lambda picture, draw: _affine(picture, (1, 0, _signed(SHIFT, draw), 0, 1, 0)),
    "shift y": lambda picture, draw: _affine(picture, (1, 0, 0, 0, 1, _signed(SHIFT, draw))),
    "turn": lambda picture, draw: _turned(picture, _signed(TURN, draw)),
}
